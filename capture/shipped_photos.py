"""Photos that are on every machine after the install: those that lie in scikit-image's own folder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

_GREY = 2
"""Axes of a picture without colour."""


def read_shipped_photo(name: str) -> UInt8[np.ndarray, "height width 3"]:
    """A photo by the name that scikit-image gives it; one in grey has three equal colours. Nothing is fetched.

    Args:
        name: Of a function of ``skimage.data`` whose file is inside the wheel, or ``motorcycle``.
    """
    from skimage import data

    if name == "motorcycle":
        read_pair: Callable[[], tuple[np.ndarray, ...]] = data.stereo_motorcycle
        return np.ascontiguousarray(read_pair()[0][..., :3])
    read: Callable[[], np.ndarray] = getattr(data, name)
    picture = read()
    coloured = np.stack([picture] * 3, axis=2) if picture.ndim == _GREY else picture[..., :3]
    return np.ascontiguousarray(coloured)

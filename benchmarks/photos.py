"""The standard photo set of the cells, written as a folder so that `client.images` and a peer read the same pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# The whole pictures of scikit-image and scikit-learn, then crops (top, bottom, left, right) of the larger ones.
WHOLE = ("astronaut", "chelsea", "coffee", "rocket", "china", "flower")
CROPS = (
    ("astronaut", (200, 512, 0, 312)),
    ("china", (0, 300, 0, 300)),
    ("flower", (0, 250, 300, 550)),
    ("coffee", (100, 400, 0, 300)),
    ("china", (200, 427, 400, 627)),
    ("flower", (150, 400, 0, 250)),
)


def write_photos(folder: Path, shift: int = 0) -> Path:
    """The folder, with one PNG per photo in the set's order.

    Args:
        folder: Made when missing.
        shift: Rotates the order, so that a batch of the first files is another photo set.
    """
    named = named_photos()
    pictures = list(named.values())
    pictures += [named[name][top:bottom, left:right] for name, (top, bottom, left, right) in CROPS]
    shift %= len(pictures)
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures[shift:] + pictures[:shift]):
        Image.fromarray(np.ascontiguousarray(picture)).save(folder / f"{index:02}.png")
    return folder


def named_photos() -> dict[str, NDArray[np.uint8]]:
    """The whole pictures, ``(height, width, 3)``."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    named = {name: getattr(data, name)() for name in WHOLE[:4]}
    named |= {name: load_sample_image(f"{name}.jpg") for name in WHOLE[4:]}
    return {name: np.asarray(picture)[..., :3] for name, picture in named.items()}

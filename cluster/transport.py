"""Images on the wire: numpy arrays travel through Ray's object store faster than tensors and arrive read-only."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def rows(images: Tensor, places: tuple[int, ...]) -> Tensor:
    """Some images of a batch in ascending order; not a copy where they are neighbours."""
    first, last = places[0], places[-1]
    return images[first : last + 1] if last - first == len(places) - 1 else images[list(places)]


def tensor(array: NDArray[Any]) -> Tensor:
    """A tensor that may be written to."""
    return torch.from_numpy(array.copy())

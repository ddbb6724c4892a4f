"""Images on the wire: numpy arrays travel through Ray's object store faster than tensors and arrive read-only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..agents import Candidate


def empty_images(candidate: Candidate) -> Candidate:
    """The candidate without its images, which travel apart."""
    return replace(candidate, images=torch.empty(0))


def rows(images: Tensor, places: tuple[int, ...]) -> Tensor:
    """Some images of a batch in ascending order; not a copy where they are neighbours."""
    first, last = places[0], places[-1]
    return images[first : last + 1] if last - first == len(places) - 1 else images[list(places)]


def tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor that may be written to."""
    return torch.from_numpy(array.copy())

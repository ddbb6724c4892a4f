"""Candidates on the wire: numpy arrays travel through Ray's object store faster than tensors and arrive read-only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..agents import Candidate


def pack(candidate: Candidate) -> tuple[np.ndarray[Any, Any], Candidate]:
    """The images as an array, and the rest of the candidate."""
    return candidate.images.numpy(), replace(candidate, images=torch.empty(0))


def unpack(packed: tuple[np.ndarray[Any, Any], Candidate]) -> Candidate:
    """The candidate again; its images are a copy that may be written to."""
    images, rest = packed
    return replace(rest, images=torch.from_numpy(images.copy()))


def tensor(array: np.ndarray[Any, Any] | None) -> Tensor | None:
    """A tensor that may be written to, or None."""
    return None if array is None else torch.from_numpy(array.copy())

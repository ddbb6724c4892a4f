"""The type in which numbers were sent, whatever type they are held in."""

from __future__ import annotations

import torch
from torch import Tensor

_NARROW = (torch.bfloat16, torch.float16)
# Fewer numbers fit a narrow type by chance.
_FEWEST = 4


def sent_type(values: Tensor) -> torch.dtype:
    """The type of these numbers; where all of them are numbers of a narrower one, that: a gradient that was sent in
    half precision stays as coarse as it was when a file of it is written in float32.

    Args:
        values: Of a floating-point type; one that is empty, or nearly so, says nothing.
    """
    if values.dtype in _NARROW or int((values != 0).sum()) < _FEWEST:
        return values.dtype
    return next((kind for kind in _NARROW if torch.equal(values.to(kind).to(values.dtype), values)), values.dtype)

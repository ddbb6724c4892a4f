"""Which image is taken to be in which of the client's local steps."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from ..capture import CapturedUpdate


def assumed_epoch(update: CapturedUpdate) -> tuple[range, ...]:
    """Which images each step of an epoch is made on: all of them where the client's order is not known.

    Args:
        update: A weight delta.
    """
    assert update.local is not None
    batches = update.local.batches(update.image_count)
    return (range(update.image_count),) * len(batches) if update.local.shuffled else batches


def step_groups(labels: Int[Tensor, " batch"], update: CapturedUpdate) -> Int[Tensor, " batch"]:
    """One number per image, the same for images of one label in one step of the client's epoch.

    Args:
        labels: One per image.
        update: A weight delta.
    """
    batches = assumed_epoch(update)
    if len(set(batches)) == 1:
        return labels
    steps = torch.cat([torch.full((len(batch),), index) for index, batch in enumerate(batches)])
    return labels * len(batches) + steps.to(labels)

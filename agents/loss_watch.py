"""When the loss of a seed is not coming back."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

# A gradient loss so far above the best one seen, and above where it began, is not coming back.
_DIVERGED = 20.0


class LossWatch:
    """The first loss of a seed, and its best one."""

    def __init__(self) -> None:
        self._first = self._best = math.inf

    def diverges(self, loss: float) -> bool:
        """Take in one loss, and say whether the descent has left what it had found.

        Args:
            loss: Of the gradient, finite.
        """
        self._first = loss if math.isinf(self._first) else self._first
        self._best = min(self._best, loss)
        return loss > _DIVERGED * self._best and loss > _DIVERGED * self._first

    def state(self) -> Float[Tensor, " 2"]:
        """For a checkpoint."""
        return torch.tensor([self._first, self._best], dtype=torch.float64)

    def restore(self, state: Float[Tensor, " 2"]) -> None:
        """Continue from what `state` gave."""
        self._first, self._best = (float(value) for value in state)

"""What a defence costs: whether a model can be trained with it, and how much accuracy is lost."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Training(StrEnum):
    """How the training with a defence ended."""

    LEARNED = "better than chance"
    NOTHING = "no better than chance"
    """Than always naming the most frequent class."""
    NOT_FINITE = "not finite"
    """At none of the learning rates."""


@dataclass(frozen=True)
class Price:
    """Of one defence."""

    training: Training
    cost: float | None = None
    """Accuracy lost against no defence, in [-1, 1]; None where there is nothing to compare."""

    @property
    def usable(self) -> bool:
        """Whether a model could be trained with it at all."""
        return self.training is Training.LEARNED

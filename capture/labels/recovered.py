"""What the attacker believes the batch's labels are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ClassCount:
    """How often one class occurs in the batch."""

    label: int
    count: int
    """At least 1."""
    confidence: float
    """That this count is right, in [0, 1]."""


@dataclass(frozen=True)
class RecoveredLabels:
    """What the attacker believes the batch's labels are."""

    labels: Int[Tensor, " batch"]
    """One entry per image, sorted (but for ``joint``); repeats appear as often as they occur."""
    confidence: Float[Tensor, " batch"]
    """In [0, 1], for the entry at the same place in ``labels``."""
    method: str
    assumption: str
    """What must hold for the method to be right, in one sentence."""
    warnings: tuple[str, ...] = ()
    """What speaks against the assumption in this update; empty when nothing does."""

    @property
    def class_counts(self) -> tuple[ClassCount, ...]:
        """Each class that was recovered, with its count.

        The confidence in a count is that in its least certain entry, times the chance that none of the other entries'
        doubt belongs to this class: ``exp(-w n / B)``, with w the sum of the other entries' doubts.
        """
        doubt = 1 - self.confidence.double()
        found = []
        for label, count in zip(*torch.unique(self.labels, return_counts=True), strict=True):
            own = self.labels == label
            elsewhere = float(doubt[~own].sum()) * int(count) / len(self.labels)
            confidence = float(self.confidence[own].min()) * math.exp(-elsewhere)
            found.append(ClassCount(int(label), int(count), confidence))
        return tuple(found)

"""What the tensors of an update are."""

from __future__ import annotations

from enum import StrEnum


class UpdateKind(StrEnum):
    """What the tensors of an update are."""

    GRADIENT = "gradient"
    """The gradient of the mean loss over the client's batch."""
    WEIGHT_DELTA = "weight_delta"
    """Weights after the client's local steps minus weights before; ``CapturedUpdate.local`` tells the steps."""

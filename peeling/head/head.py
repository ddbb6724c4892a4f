"""Features that the final layer gave away, as every way into it returns them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """Each image's input to the final layer, in float64."""

    features: Float[Tensor, "batch feature"]
    cotangent: Float[Tensor, "batch feature"]
    """The derivative of the mean loss by those features."""
    error: float
    """Estimated relative error of the features; ``inf`` when the gradient does not determine them."""
    uncertainty: Float[Tensor, "batch 1"] | None = None
    """Largest absolute error of an image's features, as those show it that must be zero; None where none must."""


@dataclass(frozen=True)
class ScaledHead:
    """The head of the gradient as it was sent, and each image's factor in it (1 without clipping)."""

    head: Head
    scales: Float[Tensor, " batch"]

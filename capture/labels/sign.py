"""Whether an update has the sign of a gradient, as the final layer shows it."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from .counts import estimate_counts
from .final_layer import FinalLayer

REVERSED = (
    "the sign of the update is reversed (a step in place of a gradient, or the server's weights less the client's): "
    "more classes have a negative gradient than there are images; it was turned"
)


def is_reversed(layer: FinalLayer, image_count: int) -> bool:
    """Whether the sign must be the other one.

    Of the mean cross-entropy only classes with an image have a negative bias gradient, or, where the layer's inputs are
    never negative, a negative entry at all. More such classes than images are impossible, and few enough with the sign
    turned speak for that sign if the class counts that follow then explain the gradient better.

    Args:
        layer: The final layer with its gradient.
        image_count: B.
    """
    if not layer.clean or layer.smoothing:
        return False
    turned = layer.scaled(-1.0)
    as_it_is, otherwise = _negative(layer), _negative(turned)
    if as_it_is is None or otherwise is None or not int(otherwise.sum()) <= image_count < int(as_it_is.sum()):
        return False
    return estimate_counts(turned, image_count).residual < estimate_counts(layer, image_count).residual


def _negative(layer: FinalLayer) -> Bool[Tensor, " classes"] | None:
    if layer.non_negative:
        return layer.weight_gradient.min(dim=1).values < 0
    return None if layer.bias_gradient is None else layer.bias_gradient < 0

"""Whether an update has the sign of a gradient, as the final layer shows it."""

from __future__ import annotations

from enum import StrEnum

from jaxtyping import Bool
from torch import Tensor

from .counts import absent_feature
from .final_layer import FinalLayer

REVERSED = (
    "the sign of the update is reversed (a step in place of a gradient, or the server's weights less the client's): "
    "more classes have a negative gradient than there are images; it was turned"
)
# With the sign turned the outputs for at least so many classes without an image are known, and differ from those of the
# mean feature that they show by at most this share: 0 on networks with random weights, and above it where the rows are
# something else, such as those of smoothed labels.
_FEWEST_CLASSES, _LARGEST_DIFFERENCE = 4, 0.1


class Sign(StrEnum):
    """What the final layer says of the sign of an update."""

    POSSIBLE = "possible"
    """That of a gradient is possible."""
    REVERSED = "reversed"
    """It is the other one."""
    OPEN = "open"
    """Either it is the other one, or there are more images, or the labels are smoothed."""


def read_sign(layer: FinalLayer, image_count: int) -> Sign:
    """What the sign can be.

    Of the mean cross-entropy only classes with an image have a negative bias gradient, or, where the layer's inputs are
    never negative, a negative entry at all. More such classes than images are impossible. Where the sign turned leaves
    few enough, and outputs that belong together, the sign is reversed.

    Args:
        layer: The final layer with its gradient.
        image_count: B.
    """
    if not layer.clean or layer.smoothing:
        return Sign.POSSIBLE
    turned = layer.scaled(-1.0)
    as_it_is, otherwise = _negative(layer), _negative(turned)
    if as_it_is is None or otherwise is None or int(as_it_is.sum()) <= image_count:
        return Sign.POSSIBLE
    fits = int(otherwise.sum()) <= image_count and _belong_together(turned, otherwise)
    return Sign.REVERSED if fits else Sign.OPEN


def _negative(layer: FinalLayer) -> Bool[Tensor, " classes"] | None:
    if layer.non_negative:
        return layer.weight_gradient.min(dim=1).values < 0
    return None if layer.bias_gradient is None else layer.bias_gradient < 0


def _belong_together(layer: FinalLayer, present: Bool[Tensor, " classes"]) -> bool:
    """Whether the rows of the classes without an image are outputs of the feature that they show."""
    feature = absent_feature(layer, present)
    if feature is None:
        return False
    sent = layer.bias_gradient if layer.bias_gradient is not None else layer.weight_gradient @ feature
    absent = (sent > 0) & ~present
    if int(absent.sum()) < _FEWEST_CLASSES:
        return False
    expected = layer.probabilities(feature)[absent]
    difference = (sent[absent] / sent[absent].sum() - expected / expected.sum()).abs().sum() / 2
    return float(difference) < _LARGEST_DIFFERENCE

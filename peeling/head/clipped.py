"""The final layer of a clipped update: each image's features and, with them, the factor that clipping left it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...capture.labels.final_layer import FinalLayer
from ..layers import rounding, worst
from .fixed_point import estimate_error, soft_labels, solve_features
from .head import Head, ScaledHead

_ITERATIONS = 500
_SETTLED = 1e-12
# Factors that differ by less, relatively, are one.
_ONE = 1e-3


def peel_scaled_head(layer: FinalLayer, labels: Int[Tensor, " batch"]) -> ScaledHead:
    """As ``peel_head`` where the gradient is ``(1/B) sum_i s_i g_i`` with unknown positive factors s_i.

    Clipping is scaling: of the whole update by one factor, or, in DP-SGD, of each image's gradient by its own. The bias
    gradient ``(1/B) sum_i s_i (p_i - y_i)`` is linear in the factors, with one equation more than there are classes
    less one: given ``P`` it gives the factors, the factors give the features, and the features give ``P`` again. One
    factor for all images is tried before one for each; both are checked as every other head is.

    Args:
        layer: With the captured gradient, that by the bias too.
        labels: The batch's labels, all different, fewer than classes less one for a factor per image.
    """
    one_hot = soft_labels(labels, layer)
    found = [_iterate(layer, one_hot, torch.ones(1, len(labels), dtype=torch.float64))]
    if found[0].head.error > _good_enough(layer.sent) and len(labels) < len(layer.weight) - 1:
        found.append(_iterate(layer, one_hot, torch.eye(len(labels), dtype=torch.float64)))
    return min(found, key=lambda scaled: scaled.head.error)


def common_scale(scales: Sequence[float]) -> float | None:
    """The factor that all images have in common; None where they differ."""
    low, high = min(scales), max(scales)
    return sum(scales) / len(scales) if high - low <= _ONE * high else None


def _good_enough(gradient: Tensor) -> float:
    return 1e3 * rounding(gradient)


def _iterate(
    layer: FinalLayer, one_hot: Float[Tensor, "batch class"], groups: Float[Tensor, "group batch"]
) -> ScaledHead:
    """The fixed point, with one factor for each group of images."""
    weight, sums, batch = layer.weight, layer.bias_gradient, len(one_hot)
    assert sums is not None
    probabilities = torch.full_like(one_hot, 1 / len(weight))
    previous_change, damping = float("inf"), 1.0
    for _ in range(_ITERATIONS):
        rows = (probabilities - one_hot) / batch
        factors = torch.linalg.lstsq((groups @ rows).T, sums[:, None], driver="gelsd").solution
        scales = (groups.T @ factors)[:, 0]
        residual = scales[:, None] * rows
        features = solve_features(residual, layer.weight_gradient)
        found = (features @ weight.T + layer.bias).softmax(dim=1)
        step = found - probabilities
        change = float(step.abs().max())
        if change < _SETTLED or change != change:
            break
        damping = max(0.05, damping * 0.7) if change > previous_change else min(1.0, damping * 1.05)
        probabilities, previous_change = probabilities + damping * step, change
    if not bool((scales > 0).all()):
        return ScaledHead(Head(features, residual @ weight, float("inf")), scales)
    least = worst(change, float(step.norm() / (probabilities - one_hot).norm()), rounding(layer.sent))
    error = estimate_error(residual, features, layer, least)
    return ScaledHead(Head(features, residual @ weight, error), scales)

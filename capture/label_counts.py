"""How often each class occurs in the batch, from the gradient of the final layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .final_layer import FinalLayer

_ROUNDS = 10
_FIT_STEPS = 30
# A smaller factor between the gradient and its rescaled self is within the error of the estimate.
_LEAST_SCALE = 1.5
# A fit's features may leave the mean feature only as far as the gradient's equations ask for (ridge, relative).
_RIDGE = 1e-3
# Deviation of the distance to the nearest whole number when there is no information: uniform on [-1/2, 1/2].
_UNINFORMED = 1 / math.sqrt(12)


@dataclass(frozen=True)
class ClassCounts:
    """Images per class, and how far the evidence was from whole numbers."""

    counts: Float[Tensor, " classes"]
    """Whole numbers with sum B."""
    error: Float[Tensor, " classes"]
    """Unrounded estimate minus ``counts``, in images."""
    residual: float
    """Share of the gradient that the counts leave unexplained, with one mean feature per class."""
    scale: float = 1.0
    """What the gradient had to be multiplied with; above 1 when it looks clipped."""

    @property
    def spread(self) -> float:
        """Root mean square of ``error``; 0.29 when the estimate knows nothing."""
        return float(self.error.square().mean().sqrt())


def estimate_counts(layer: FinalLayer, image_count: int) -> ClassCounts:
    """The class counts that explain the final layer's gradient best.

    From ``dL/db = mean(p) - n / B`` follows ``n = B (mean(p) - dL/db)``. The mean softmax output is unknown; as in iLRG
    (Ma et al., ICLR 2023) it comes from features read off the gradient itself: a class without an image has the row
    ``sum_i p_ik f_i / B``, so its row over its bias entry is a mean feature. Then, in turn: one mean feature per class
    from the counts (least squares on dL/dW), softmax outputs from those, counts from the outputs, until they repeat.

    Note:
        iLRG reads each class's feature off its own row and solves once; here all rows are used and the result is
        iterated. A layer without bias uses ``dL/dW f / |f|^2`` with the mean feature f in place of dL/db.

    Args:
        layer: The final layer with its gradient.
        image_count: B.
    """
    present = layer.present
    if not layer.non_negative or int(present.sum()) > image_count:
        present = torch.zeros_like(present)
    small = layer.compressed()
    best = _best_over_starts(small, present, image_count)
    if best.spread < 0.5 * _UNINFORMED:
        return best
    # Far from whole numbers: perhaps clipping scaled the gradient. For a class without an image dL/db is mean(p).
    feature = absent_feature(small, present)
    if feature is None or small.bias_gradient is None:
        return best
    strongest = float((small.bias_gradient / small.probabilities(feature)).max())
    scale = 1 / strongest if strongest > 0 else 1.0
    if scale < _LEAST_SCALE:
        return best
    rescaled = _best_over_starts(small.scaled(scale), present, image_count)
    return replace(rescaled, scale=scale) if rescaled.spread < 0.5 * best.spread else best


def _best_over_starts(layer: FinalLayer, present: Bool[Tensor, " classes"], image_count: int) -> ClassCounts:
    """The best of the iterations from the prior's mean feature and from the one that absent classes show."""
    starts = [layer.prior_features.mean(dim=0)]
    absent = absent_feature(layer, present)
    if absent is not None:
        starts.append(absent)
    found = [_iterate(layer, image_count, feature, present.double()) for feature in starts]
    return min(found, key=lambda counts: counts.residual)


def absent_feature(layer: FinalLayer, present: Bool[Tensor, " classes"]) -> Float[Tensor, " features"] | None:
    """The mean feature read off the rows of classes that no image has; None when no class looks absent.

    Args:
        layer: The final layer with its gradient, of any scale.
        present: Classes that are known to have an image.
    """
    evidence = layer.bias_gradient
    if evidence is None:
        evidence = layer.weight_gradient @ layer.prior_features.mean(dim=0)
    absent = (evidence > 0) & ~present
    if not bool(absent.any()):
        return None
    total = layer.weight_gradient[absent].sum(dim=0)
    if layer.bias_gradient is not None:
        return total / layer.bias_gradient[absent].sum()
    # Without a bias only the direction is known; the length is that of the mean prior feature.
    feature: Tensor = total * (layer.prior_features.mean(dim=0).norm() / total.norm().clamp_min(1e-300))
    return feature


def _iterate(
    layer: FinalLayer,
    image_count: int,
    feature: Float[Tensor, " features"],
    lowest: Float[Tensor, " classes"],
) -> ClassCounts:
    """Counts, class features and softmax outputs in turn, from one guess of the mean feature; the best seen."""
    mean_output = layer.probabilities(feature)
    seen: list[ClassCounts] = []
    for _ in range(_ROUNDS):
        estimate = image_count * (mean_output - _bias_gradient(layer, feature))
        counts = round_counts(estimate, image_count, lowest)
        if any(torch.equal(counts, earlier.counts) for earlier in seen):
            break
        features, residual = _fit_features(layer, counts, image_count, feature)
        weights = counts[counts > 0] / image_count
        mean_output = weights @ layer.probabilities(features)
        if layer.bias_gradient is None:
            feature = weights @ features
        refined = image_count * (mean_output - _bias_gradient(layer, feature))
        seen.append(ClassCounts(counts, refined - counts, residual))
    return min(seen, key=lambda counts: counts.residual)


def _bias_gradient(layer: FinalLayer, feature: Float[Tensor, " features"]) -> Float[Tensor, " classes"]:
    if layer.bias_gradient is not None:
        return layer.bias_gradient
    return layer.weight_gradient @ feature / feature.square().sum().clamp_min(1e-300)


def _fit_features(
    layer: FinalLayer,
    counts: Float[Tensor, " classes"],
    image_count: int,
    feature: Float[Tensor, " features"],
) -> tuple[Float[Tensor, "present features"], float]:
    """One mean feature per present class such that ``sum_j (n_j / B) (p_j - e_j) f_j^T`` is dL/dW, and what is left.

    The outputs p_j depend on the features, so outputs and features are renewed in turn, half a step at a time.
    """
    present = counts.nonzero().flatten()
    weights = counts[present] / image_count
    one_hot = torch.eye(len(counts), dtype=torch.float64)[present]
    features = feature.expand(len(present), -1)
    start = features
    for _ in range(_FIT_STEPS):
        mixing = ((layer.probabilities(features) - one_hot) * weights[:, None]).T
        ridge = _RIDGE * mixing.abs().max() * torch.eye(len(present), dtype=torch.float64)
        left, right = torch.cat([mixing, ridge]), torch.cat([layer.weight_gradient, ridge @ start])
        features = 0.5 * features + 0.5 * torch.linalg.lstsq(left, right).solution
    outputs = layer.probabilities(features)
    mixing = ((outputs - one_hot) * weights[:, None]).T
    residual = _relative(mixing @ features, layer.weight_gradient)
    if layer.bias_gradient is not None:
        residual = 0.5 * (residual + _relative(mixing.sum(dim=1), layer.bias_gradient))
    return features, residual


def _relative(prediction: Tensor, truth: Tensor) -> float:
    return float((prediction - truth).norm() / truth.norm().clamp_min(1e-300))


def round_counts(
    estimate: Float[Tensor, " classes"], total: int, lowest: Float[Tensor, " classes"]
) -> Float[Tensor, " classes"]:
    """The whole numbers nearest to the estimate (in squares) that sum to ``total`` and are at least ``lowest``.

    Args:
        estimate: Any real numbers.
        total: The sum; at least ``lowest.sum()``.
        lowest: Whole numbers, at least 0.
    """
    counts = torch.maximum(estimate.round(), lowest)
    surplus = int(counts.sum()) - total
    for _ in range(abs(surplus)):
        # One image more or less costs least where the estimate is farthest on that side.
        if surplus > 0:
            counts[torch.where(counts > lowest, counts - estimate, -torch.inf).argmax()] -= 1
        else:
            counts[(estimate - counts).argmax()] += 1
    return counts

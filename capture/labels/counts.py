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
# Deviation of an estimated count: in images, and as a share of the images that the class's mean output stands for. A
# network that puts all images into one class is wrong about that class by many of them, and about the others by none.
_ROUNDING_DOUBT, _OUTPUT_DOUBT = 0.1, 0.05
# Lengths of features relative to their mean: their scatter, and at how many places it is summed up.
_SPREADS, _LENGTHS = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5), 9
# Residuals that differ by less do not tell which counts are right.
_AS_GOOD = 1.05
# One image at a time costs a pass over the classes: beyond so many all classes are moved at once.
_MOST_SINGLE_STEPS = 1_000
# Halvings of an interval: to the last digit of a double.
_HALVINGS = 100
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
    distance: float = 0.0
    """Mean square of what rounding changed, in doubts."""
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
    return _best(found)


def _best(found: list[ClassCounts]) -> ClassCounts:
    """The counts that explain most; of those that explain as much, the ones that were nearest to whole numbers."""
    least = min(counts.residual for counts in found)
    return min((c for c in found if c.residual <= _AS_GOOD * least), key=lambda counts: counts.distance)


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
    spread = _length_spread(layer, image_count, feature, lowest)
    mean_output = _outputs(layer, feature, spread)
    seen: list[ClassCounts] = []
    for _ in range(_ROUNDS):
        estimate = image_count * (mean_output - _bias_gradient(layer, feature))
        doubt = _doubt(mean_output, image_count)
        counts = round_counts(estimate, image_count, lowest, doubt)
        distance = float(((estimate - counts) / doubt).square().mean())
        if any(torch.equal(counts, earlier.counts) for earlier in seen):
            break
        features, residual = _fit_features(layer, counts, image_count, feature)
        weights = counts[counts > 0] / image_count
        mean_output = weights @ _outputs(layer, features, spread)
        if layer.bias_gradient is None:
            feature = weights @ features
        refined = image_count * (mean_output - _bias_gradient(layer, feature))
        seen.append(ClassCounts(counts, refined - counts, residual, distance))
    return _best(seen)


def _doubt(mean_output: Float[Tensor, " classes"], image_count: int) -> Float[Tensor, " classes"]:
    """Deviation of each class's estimated count."""
    return _ROUNDING_DOUBT + _OUTPUT_DOUBT * image_count * mean_output


def _outputs(
    layer: FinalLayer, features: Float[Tensor, "*some features"], spread: float
) -> Float[Tensor, "*some classes"]:
    """Mean softmax outputs over features of these directions whose lengths scatter by a share of themselves."""
    if spread == 0:
        return layer.probabilities(features)
    places = torch.linspace(-2, 2, _LENGTHS, dtype=torch.float64)
    shares = (-places.square() / 2).softmax(dim=0)
    parts = [
        share * layer.probabilities((1 + spread * float(z)) * features) for share, z in zip(shares, places, strict=True)
    ]
    return torch.stack(parts).sum(dim=0)


def _length_spread(
    layer: FinalLayer,
    image_count: int,
    feature: Float[Tensor, " features"],
    lowest: Float[Tensor, " classes"],
) -> float:
    """How much the lengths of the images' features scatter, in shares of their mean.

    On a network whose outputs are far from even, the mean output is not that of the mean feature. The scatter is the
    one with which the estimated counts are nearest to whole numbers; 0 unless that halves their distance.
    """
    if layer.bias_gradient is None:
        return 0.0
    distances = {}
    for spread in _SPREADS:
        output = _outputs(layer, feature, spread)
        estimate = image_count * (output - layer.bias_gradient)
        error = (estimate - torch.maximum(estimate.round(), lowest)) / _doubt(output, image_count)
        distances[spread] = float(error.square().mean())
    best = min(distances, key=lambda spread: distances[spread])
    return best if distances[best] < 0.25 * distances[0.0] else 0.0


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
        if not bool(torch.isfinite(left).all()):
            return start, math.inf  # a gradient that no features have, such as one of the other sign
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
    estimate: Float[Tensor, " classes"],
    total: int,
    lowest: Float[Tensor, " classes"],
    doubt: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, " classes"]:
    """The whole numbers nearest to the estimate that sum to ``total`` and are at least ``lowest``.

    Nearest in squares, each divided by the square of the class's doubt: one image at a time is taken from the class, or
    given to it, that it costs least. Far from the total, all classes are first shifted together.

    Args:
        estimate: Any real numbers.
        total: The sum; at least ``lowest.sum()``.
        lowest: Whole numbers, at least 0.
        doubt: Deviation of each estimate, above 0, up to a common factor; None where all are equal.
    """
    doubt = torch.ones_like(estimate) if doubt is None else doubt
    counts = torch.maximum(estimate.round(), lowest)
    surplus = int(counts.sum()) - total
    if abs(surplus) > _MOST_SINGLE_STEPS:
        counts = _level(estimate, total, lowest, doubt)
        surplus = int(counts.sum()) - total
    step = 1 if surplus < 0 else -1
    for _ in range(abs(surplus)):
        # What one image more or less adds to the sum of squares.
        cost = (1 + 2 * step * (counts - estimate)) / doubt.square()
        counts[torch.where((counts > lowest) | (step > 0), cost, torch.inf).argmin()] += step
    return counts


def _level(
    estimate: Float[Tensor, " classes"],
    total: int,
    lowest: Float[Tensor, " classes"],
    doubt: Float[Tensor, " classes"],
) -> Float[Tensor, " classes"]:
    """``round(estimate + t doubt^2)``, at least ``lowest``, for the t at which the sum is nearest to ``total``.

    Without rounding this is the least sum of squares of a given total: its derivative is the same for all classes.
    """

    def at(shift: float) -> Float[Tensor, " classes"]:
        return torch.maximum((estimate + shift * doubt.square()).round(), lowest)

    far = (total + float(estimate.abs().sum())) / float(doubt.square().min().clamp_min(1e-300)) + 1.0
    below, above = -far, far
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        below, above = (middle, above) if float(at(middle).sum()) <= total else (below, middle)
    return at(below)

"""How far candidates show the same thing: correlation with the mean of the others."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

OUTSIDE = 1e-3  # weight of a border that was only repeated: it counts where no candidate shows anything


def correlation(first: Float[Tensor, "*batch height width"], second: Tensor, weight: Tensor) -> Float[Tensor, "*batch"]:
    """Normalised cross-correlation over the last two dimensions, in [-1, 1]; 1 for two constant images."""
    total = weight.sum(dim=(-2, -1)).clamp_min(1e-6)

    def mean(values: Tensor) -> Tensor:
        return (values * weight).sum(dim=(-2, -1)) / total

    mean_first, mean_second = mean(first), mean(second)
    covariance = mean(first * second) - mean_first * mean_second
    variance_first = (mean(first * first) - mean_first**2).clamp_min(0)
    variance_second = (mean(second * second) - mean_second**2).clamp_min(0)
    return ((covariance + 1e-8) / ((variance_first * variance_second).sqrt() + 1e-8)).clamp(-1, 1)


def others_mean(
    aligned: Float[Tensor, "seed image height width"], visible: Tensor, weights: Float[Tensor, " seed"]
) -> Float[Tensor, "seed image height width"]:
    """For each candidate the mean of all the others: evidence in which it has no share."""
    weight = weights[:, None, None, None] * visible.clamp_min(OUTSIDE)
    total, share = (weight * aligned).sum(0), weight.sum(0)
    return (total - weight * aligned) / (share - weight).clamp_min(1e-12)


def agreement_with_others(
    aligned: Float[Tensor, "seed image height width"], visible: Tensor, weights: Float[Tensor, " seed"]
) -> Float[Tensor, "seed image"]:
    """Correlation of each candidate with the mean of the others; 1 when there are no others."""
    if aligned.shape[0] == 1:
        return aligned.new_ones(aligned.shape[:2])
    return correlation(aligned, others_mean(aligned, visible, weights), visible)

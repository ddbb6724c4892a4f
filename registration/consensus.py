"""From aligned candidates to one image per image: the mean, the robust mean, and how far the candidates agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .agreement import OUTSIDE
from .candidates import LeftOut
from .coherence import disagreement, shrink_unshared

_HUBER = 1.7
_ITERATIONS = 2
# Of an image's contrast: seeds that differ by less have converged to one picture. What they do not share is then too
# little to be worth filtering, and is no noise.
_AGREE = 0.01


@dataclass(frozen=True)
class Consensus:
    """What the candidates of all seeds show in common."""

    images: Float[Tensor, "image channel height width"]
    """The consensus, in the candidates' own pixel scale."""
    agreement: Float[Tensor, " image"]
    """Per image in [0, 1]: mean correlation of a candidate with the mean of the others; 1 for a single candidate."""
    seeds: tuple[int, ...]
    """Seeds whose candidates were used."""
    round: int
    """The round the candidates come from."""
    displacement: Float[Tensor, "seed image 2 height width"] | None
    """Pixels, x then y: ``candidate(x + displacement(x))`` shows what ``images(x)`` shows. None when not registered."""
    rejected: Bool[Tensor, "seed image"]
    """Warps refused by the guard; those candidates were used where they stood."""
    left_out: tuple[LeftOut, ...]
    """The seeds that were not used, and why."""


def average(
    aligned: Float[Tensor, "seed image channel height width"],
    visible: Float[Tensor, "seed image height width"] | None,
    weights: Float[Tensor, " seed"],
    kind: str,
) -> Float[Tensor, "image channel height width"]:
    """The mean over seeds, Huber's M-estimate of it per pixel, or that with what seeds do not share shrunk; ``auto``
    shrinks image by image, where the seeds disagree by more than 1 % of the image's contrast.

    Huber (1964): weights ``min(1, 1.7 s / |r|)`` with ``|r|`` the distance over channels, found by two reweightings
    from the mean; s is the mean distance over the whole image and all seeds.
    """
    weight = weights[:, None, None, None, None].expand(*aligned.shape[:2], 1, *aligned.shape[-2:])
    if visible is not None:
        weight = weight * visible.clamp_min(OUTSIDE)[:, :, None]
    mean = (weight * aligned).sum(0) / weight.sum(0)
    several = aligned.shape[0] >= 3
    if kind != "mean" and several:
        mean = _robust(mean, aligned, weight)
    if kind == "wiener":
        return shrink_unshared(mean, aligned, weights)
    return _shrunk_where_they_disagree(mean, aligned, weights) if kind == "auto" and several else mean


def _shrunk_where_they_disagree(mean: Tensor, aligned: Tensor, weights: Tensor) -> Tensor:
    images = (disagreement(mean, aligned, weights) > _AGREE).nonzero()[:, 0]
    if len(images):
        mean = mean.index_copy(0, images, shrink_unshared(mean[images], aligned[:, images], weights))
    return mean


def _robust(mean: Tensor, aligned: Tensor, weight: Tensor) -> Float[Tensor, "image channel height width"]:
    for _ in range(_ITERATIONS):
        distance = (aligned - mean).square().mean(dim=2, keepdim=True).sqrt()
        deviation = (weight * distance).sum(dim=(0, -2, -1), keepdim=True) / weight.sum(dim=(0, -2, -1), keepdim=True)
        robust = weight * (_HUBER * deviation / distance.clamp_min(1e-12)).clamp_max(1)
        # All candidates equal: every distance and the deviation vanish, and so would the weights.
        robust = torch.where(deviation > 0, robust, weight)
        mean = (robust * aligned).sum(0) / robust.sum(0)
    return mean

"""Candidates that show an image the other way round, found by agreement."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .contrast import gray, level_sizes, local_contrast, resize

_SIZE = 28  # pixels of the shorter side at which candidates are compared: warps matter little there
_INDEPENDENT = 4.0  # pixels per independent observation
_DEVIATIONS = 3.0  # of chance, that a candidate must agree better mirrored than plain


def mirrored(
    candidates: Float[Tensor, "seed image channel height width"], weights: Float[Tensor, " seed"]
) -> Bool[Tensor, "seed image"]:
    """Which candidates to mirror from left to right, so that the seeds of each image agree.

    With D_ij the correlation of candidates i and j less that of i and the mirrored j, the sides s_i = 1 or -1 that
    maximise ``sum_ij s_i D_ij s_j`` are taken as the signs of D's leading eigenvector. The side with most weight stays
    as it is, and so does a candidate that agrees with the others no better mirrored than chance may have it.

    Note:
        A consensus in which some seeds are mirrored must be mirrored back for those seeds before it is their target.
    """
    size = level_sizes(candidates.shape[-2], candidates.shape[-1], _SIZE)[-1]
    small = local_contrast(resize(gray(candidates), size)[:, :, 0])
    small = small - small.mean(dim=(-2, -1), keepdim=True)
    small = small / small.flatten(-2).norm(dim=-1)[..., None, None].clamp_min(1e-12)
    plain = small.flatten(-2).transpose(0, 1)
    turned = small.flip(-1).flatten(-2).transpose(0, 1)
    difference = plain @ plain.mT - plain @ turned.mT
    difference = difference * (1 - torch.eye(len(candidates), device=candidates.device))
    side = torch.linalg.eigh((difference + difference.mT) / 2).eigenvectors[..., -1].sign()
    side = torch.where(side == 0, 1.0, side)
    majority = (side * weights).sum(-1, keepdim=True)
    # A tie: the first seed stays.
    side = side * torch.where(majority.abs() > 1e-6, majority.sign(), side[:, :1])
    support = side * (difference @ side[..., None])[..., 0] / max(1, len(candidates) - 1)
    chance = _DEVIATIONS * (2 * _INDEPENDENT / (size[0] * size[1] * max(1, len(candidates) - 1))) ** 0.5
    return ((side < 0) & (support > chance)).T

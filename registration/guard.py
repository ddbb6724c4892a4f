"""When not to believe a warp: each rule answers per candidate image, from the candidates alone."""

from __future__ import annotations

import logging
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .config import RegistrationConfig
from .contrast import blur, resize

log = logging.getLogger(__name__)

_CHECK_SIZE = 28  # folds and displacement are judged on a field of this size, where noise has been averaged away
_SMALLEST_AREA = 0.2  # of a unit of area after the warp, below which it counts as folded
_INDEPENDENT = 4.0  # pixels per independent observation of the blurred evidence
_ODDS = 20.0


def folded(displacement: Float[Tensor, "seed image height width 2"]) -> Bool[Tensor, "seed image"]:
    """Whether the smoothed warp turns some area over or shrinks it to almost nothing."""
    field = _smoothed(displacement)
    height, width = field.shape[-2:]
    across = (field[..., 1:-1, 2:] - field[..., 1:-1, :-2]) * (width / 4)
    down = (field[..., 2:, 1:-1] - field[..., :-2, 1:-1]) * (height / 4)
    area = (1 + across[:, :, 0]) * (1 + down[:, :, 1]) - across[:, :, 1] * down[:, :, 0]
    return area.flatten(-2).amin(-1) < _SMALLEST_AREA


def too_far(
    displacement: Float[Tensor, "seed image height width 2"], max_displacement: float
) -> Bool[Tensor, "seed image"]:
    """Whether the smoothed warp moves some place by more than the allowed share of the shorter side."""
    height, width = displacement.shape[-3:-1]
    shorter = min(height, width)
    field = _smoothed(displacement)
    share = torch.stack([field[:, :, 0] * (width / 2), field[:, :, 1] * (height / 2)], dim=2) / shorter
    return share.square().sum(2).sqrt().flatten(-2).amax(-1) > max_displacement


def no_gain(
    after: Float[Tensor, "*warps"], before: Float[Tensor, "*warps"], pixels: int, margin: float
) -> Bool[Tensor, "*warps"]:
    """Whether warping raised a correlation by less than ``margin``, or by no more than chance may.

    With n independent pixels a correlation c has the log-likelihood ``-n/2 ln(1 - c^2)`` up to a constant: the warp
    must be `_ODDS` times likelier than none.
    """
    unexplained = [(1 - match.clamp(0, 1).square()).clamp_min(1e-6) for match in (before, after)]
    gain = pixels / _INDEPENDENT / 2 * (unexplained[0] / unexplained[1]).log()
    return (after < before + margin) | (gain < math.log(_ODDS))


def refuse(
    displacement: Float[Tensor, "seed image height width 2"],
    after: Float[Tensor, "seed image"],
    before: Float[Tensor, "seed image"],
    config: RegistrationConfig,
) -> Bool[Tensor, "seed image"]:
    """The warps not to be used; how many fell to which rule is logged."""
    rules = {
        "no photometric gain": no_gain(after, before, displacement.shape[-3] * displacement.shape[-2], config.margin),
        "folded": folded(displacement),
        "displacement too large": too_far(displacement, config.max_displacement),
    }
    refused = torch.zeros_like(rules["folded"])
    for reason, found in rules.items():
        count = int((found & ~refused).sum())
        if count:
            log.info("%d of %d warps refused: %s", count, refused.numel(), reason)
        refused = refused | found
    return refused


def _smoothed(displacement: Tensor) -> Float[Tensor, "seed image 2 rows columns"]:
    height, width = displacement.shape[-3:-1]
    size = (min(height, _CHECK_SIZE), min(width, _CHECK_SIZE))
    return blur(resize(displacement.movedim(-1, -3), size), 1.0)

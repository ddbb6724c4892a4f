"""`register`: candidates in, consensus out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .agreement import agreement_with_others, correlation, others_mean
from .candidates import SMALLEST_SIDE, Usable, check
from .config import RegistrationConfig
from .consensus import Consensus, average
from .guard import no_gain, refuse
from .own_method import own_displacement
from .schedule import Schedule
from .warp import base_grid, inside, remove_shared_displacement, resize_field, sample, to_pixels

log = logging.getLogger(__name__)
_DEFAULTS = RegistrationConfig()


@torch.no_grad()
def register(
    candidates: Tensor,
    *,
    seeds: Sequence[int] | None = None,
    round: int = 0,
    config: RegistrationConfig = _DEFAULTS,
) -> Consensus:
    """The consensus of the candidates of several seeds: their mean after each was registered to it.

    The target E of the group consistency of Yin et al., "See through Gradients", CVPR 2021 (section 3.3), with one
    warp per candidate image, found by `schedule.Schedule`.

    Args:
        candidates: `(seeds, images, channels, height, width)`, pixels in any linear scale (normalised, [0, 1], bytes);
            three channels are taken for RGB. Images with a side under `SMALLEST_SIDE` are averaged as they stand.
        seeds: the name of each candidate, for messages and for `Consensus.seeds`; 0, 1, ... when not given.
        round: handed through to the consensus.
        config: the method and its settings.

    Returns:
        The consensus in the candidates' own scale, with warps, agreement, refused warps and the seeds left out.

    Raises:
        RegistrationError: input that cannot be registered (see `candidates.check`).
        PluginError: a method of the user's own that cannot be had, or does not keep its protocol.

    Note:
        The paper registers each candidate once to the pixel mean, by RANSAC-flow with pretrained features. Here
        nothing is pretrained, the target is averaged again and again, and an image whose candidates do not agree
        better registered than plain keeps the plain mean.
    """
    usable = check(candidates, seeds)
    for one in usable.left_out:
        log.warning("round %d leaves out %s", round, one)
    schedule = Schedule(usable.images, usable.weights, config)
    evidence = schedule.evidence
    if config.method == "none" or len(usable.seeds) == 1:
        return _plain(usable, evidence, round)
    if min(usable.images.shape[-2:]) < SMALLEST_SIDE:
        return _unmoved(usable, evidence, round, config)
    finest = schedule.sizes[-1]
    if config.own_method is not None:
        estimated = resize_field(own_displacement(config.own_method, usable.images), *finest)
    else:
        estimated = schedule.estimate().displacement(*finest)
    displacement = remove_shared_displacement(estimated)
    rejected = _refused(displacement, evidence, usable.weights, config)
    displacement = displacement * ~rejected[..., None, None, None]
    plain, agreement = _falls_back(displacement, evidence, usable.weights, config)
    rejected = rejected | plain
    return _registered(usable, displacement, rejected, agreement, round, config.consensus)


def _plain(usable: Usable, evidence: Tensor, round: int) -> Consensus:
    everywhere = torch.ones_like(evidence)
    return Consensus(
        images=average(usable.images, None, usable.weights, "mean"),
        agreement=agreement_with_others(evidence, everywhere, usable.weights).mean(0).clamp(0, 1),
        seeds=usable.seeds,
        round=round,
        displacement=None,
        rejected=torch.zeros(usable.images.shape[:2], dtype=torch.bool, device=usable.images.device),
        left_out=usable.left_out,
    )


def _unmoved(usable: Usable, evidence: Tensor, round: int, config: RegistrationConfig) -> Consensus:
    """Every warp is refused before it is looked for: so few pixels show none, and the rule of the consensus remains."""
    displacement = evidence.new_zeros(*evidence.shape, 2)
    refused = torch.ones(usable.images.shape[:2], dtype=torch.bool, device=evidence.device)
    agreement = agreement_with_others(evidence, torch.ones_like(evidence), usable.weights).mean(0).clamp(0, 1)
    return _registered(usable, displacement, refused, agreement, round, config.consensus)


def _refused(
    displacement: Tensor, evidence: Tensor, weights: Tensor, config: RegistrationConfig
) -> Bool[Tensor, "seed image"]:
    """Which warps to refuse: each candidate, warped and not, is held against the mean of the other warped ones."""
    warped, visible = _sampled(evidence, displacement)
    others = others_mean(warped, visible, weights)
    after = correlation(warped, others, visible)
    before = correlation(evidence, others, torch.ones_like(visible))
    return refuse(displacement, after, before, config)


def _falls_back(
    displacement: Tensor, evidence: Tensor, weights: Tensor, config: RegistrationConfig
) -> tuple[Bool[Tensor, " image"], Float[Tensor, " image"]]:
    """Which images keep the plain mean, since their candidates agree no better registered; the agreement of each."""
    after = agreement_with_others(*_sampled(evidence, displacement), weights).mean(0)
    before = agreement_with_others(evidence, torch.ones_like(evidence), weights).mean(0)
    plain = no_gain(after, before, evidence.shape[-2] * evidence.shape[-1], config.margin)
    for image in plain.nonzero()[:, 0].tolist():
        log.info(
            "image %d keeps the plain mean: agreement %.3f registered, %.3f plain",
            image,
            after[image].item(),
            before[image].item(),
        )
    return plain, torch.where(plain, before, after).clamp(0, 1)


def _sampled(evidence: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
    grid = base_grid(evidence.shape[-2], evidence.shape[-1], evidence) + displacement
    return sample(evidence[:, :, None], grid)[:, :, 0], inside(grid)


def _registered(
    usable: Usable, displacement: Tensor, rejected: Tensor, agreement: Tensor, round: int, kind: str
) -> Consensus:
    """The average of the candidates, warped at full size where their warp was not refused."""
    height, width = usable.images.shape[-2:]
    field = resize_field(displacement, height, width) * ~rejected[..., None, None, None]
    grid = base_grid(height, width, field) + field
    # Bicubic: bilinear weights would take the finest detail of every candidate with them.
    warped = sample(usable.images, grid, mode="bicubic")
    aligned = torch.where(rejected[..., None, None, None], usable.images, warped)
    return Consensus(
        images=average(aligned, inside(grid), usable.weights, kind),
        agreement=agreement,
        seeds=usable.seeds,
        round=round,
        displacement=to_pixels(field),
        rejected=rejected,
        left_out=usable.left_out,
    )

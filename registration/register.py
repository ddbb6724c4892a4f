"""The schedule: rounds of registration to a target that is averaged again each time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .candidates import Usable, check
from .coarse import AFFINE, HOMOGRAPHY, TRANSLATION, Target, keep_better, phase_start, refine
from .config import RegistrationConfig
from .consensus import Consensus, agreement_with_others, average
from .contrast import blur, gray, level_sizes, local_contrast, resize
from .fine import Warp, refine_flow
from .guard import no_gain, refuse
from .warp import (
    base_grid,
    inside,
    remove_shared_displacement,
    remove_shared_homography,
    resize_field,
    sample,
    to_pixels,
)

log = logging.getLogger(__name__)

_PHASE_SIZE = 56
AGAIN = 2
HLOW = False
KEEP = True
PRE = 0.0
WHOLE = False


@torch.no_grad()
def register(
    candidates: Float[Tensor, "seed image channel height width"],
    *,
    seeds: Sequence[int] | None = None,
    round: int = 0,
    config: RegistrationConfig = RegistrationConfig(),  # noqa: B008 - frozen
    weights: Float[Tensor, "seed"] | None = None,
) -> Consensus:
    """The consensus of the candidates of several seeds: their mean after each was registered to it.

    Yin et al., "See through Gradients", CVPR 2021, section 3.3 (the group consistency's target E), with a warp per
    candidate image found coarse to fine (see `docs` of the modules `coarse` and `fine`).

    Args:
        candidates: pixels in any linear scale, normalised or in [0, 1]; 1 or 3 channels, 8 px or more on each side.
        seeds: the name of each candidate, for messages and for `Consensus.seeds`; 0, 1, ... when not given.
        round: handed through to the consensus.
        config: the method and its settings.
        weights: share of each seed in the mean (any positive scale); equal when not given.

    Returns:
        The consensus in the candidates' own scale, with warps, agreement, refused warps and the seeds left out.

    Raises:
        RegistrationError: input that cannot be registered (see `candidates.check`).

    Note:
        The paper registers each candidate once to the pixel mean by RANSAC-flow, a pretrained network; here nothing is
        pretrained, the target is averaged again each round, and an image whose registered candidates do not agree
        better than the plain ones keeps the plain mean.
    """
    usable = check(candidates, seeds, weights)
    for reason in usable.left_out:
        log.warning("left out of round %d: %s", round, reason)
    if config.method == "none" or len(usable.seeds) == 1:
        return _plain(usable, round, config)
    return _Schedule(usable, config).run(round)


def _plain(usable: Usable, round: int, config: RegistrationConfig) -> Consensus:
    level = local_contrast(resize(gray(usable.images), level_sizes(*usable.images.shape[-2:], config.coarse_size)[-1]))
    agreement = agreement_with_others(level[:, :, 0], torch.ones_like(level[:, :, 0]), usable.weights)
    kind = "mean" if config.method == "none" else config.consensus
    return Consensus(
        images=average(usable.images, None, usable.weights, kind),
        agreement=agreement.mean(0).clamp(0, 1),
        seeds=usable.seeds,
        round=round,
        displacement=None,
        rejected=torch.zeros(usable.images.shape[:2], dtype=torch.bool, device=usable.images.device),
        left_out=usable.left_out,
    )


@dataclass(frozen=True)
class _Evidence:
    """Correlation of each candidate with the mean of the others, as it was and as it is warped."""

    before: Float[Tensor, "seed image"]
    warped: Float[Tensor, "seed image"]
    unwarped: Float[Tensor, "seed image"]


class _Schedule:
    """One run of the schedule on one set of candidates."""

    def __init__(self, usable: Usable, config: RegistrationConfig) -> None:
        self.usable, self.config, self.weights = usable, config, usable.weights
        self.size = (usable.images.shape[-2], usable.images.shape[-1])
        self.levels = level_sizes(*self.size, config.coarse_size)
        gray_images = gray(usable.images)
        self.gray = resize(gray_images, self.levels[-1])
        if WHOLE:
            top = local_contrast(blur(self.gray, PRE) if PRE else self.gray)
            self.moving = [resize(top, size) for size in self.levels]
        else:
            g = blur(self.gray, PRE) if PRE else self.gray
            self.moving = [local_contrast(resize(g, size)) for size in self.levels]
        self.identity = torch.eye(3, device=self.gray.device).repeat(*self.gray.shape[:2], 1, 1)

    def run(self, round: int) -> Consensus:
        """Registers, judges and averages."""
        warp = Warp(self.identity)
        for turn in range(self.config.rounds):
            warp = self.turn(warp, turn)
        displacement = warp.displacement(*self.levels[-1])
        everyone = torch.ones_like(self.identity[..., 0, 0])
        displacement = remove_shared_displacement(displacement, everyone)
        rejected = self.judge(displacement)
        displacement = displacement * (~rejected)[..., None, None, None]
        evidence = self.evidence(displacement)
        return self.consensus(displacement, rejected, evidence, round)

    def turn(self, warp: Warp, turn: int) -> Warp:
        """One round: a new target on each level, the homographies, and in the last round the flow."""
        homographies = warp.homographies
        for level, size in enumerate(self.levels):
            finest = level == len(self.levels) - 1
            if min(size) > _PHASE_SIZE and turn == 0 and not finest:
                continue
            moving = self.moving[level]
            for again in range(AGAIN if not finest else 1):
                target = self.target(Warp(homographies), level)
                if turn == 0 and level == 0 and again == 0:
                    homographies = phase_start(moving, target, self.config.max_displacement)
                    target = self.target(Warp(homographies), level)
                begin = homographies
                if turn == 0:
                    homographies = refine(homographies, moving, target, TRANSLATION, 2)
                    homographies = refine(homographies, moving, target, AFFINE, 3)
                if level > 0 or finest or HLOW:
                    homographies = refine(homographies, moving, target, HOMOGRAPHY, 3)
                if KEEP: homographies = keep_better(homographies, begin, moving, target)
                homographies = remove_shared_homography(homographies, torch.ones_like(homographies[..., 0, 0]))
        warp = Warp(homographies)
        if turn == self.config.rounds - 1 and self.wants_flow():
            warp = self.flow(warp)
        return warp

    def wants_flow(self) -> bool:
        return self.config.method == "coarse_to_fine" and min(self.size) >= self.config.fine_min_size

    def flow(self, warp: Warp) -> Warp:
        """A flow for the images that moved enough for one to matter."""
        refined = refine_flow(warp, self.moving[-1], self.target(warp, -1))
        assert refined.flow is not None
        moved = to_pixels(warp.displacement(*self.levels[0])).square().sum(2).mean(dim=(-2, -1)).sqrt()
        enough = moved.amax(0) >= self.config.fine_min_displacement * min(self.levels[0])
        return Warp(refined.homographies, refined.flow * enough[None, :, None, None, None])

    def target(self, warp: Warp, level: int) -> Target:
        """The mean of the warped candidates at one level."""
        grid = warp.grid(*self.levels[level])
        return Target(sample(self.moving[level], grid)[:, :, 0], inside(grid), self.weights)

    def judge(self, displacement: Tensor) -> Bool[Tensor, "seed image"]:
        """Which warps to refuse, by their agreement with the mean of the other warped candidates."""
        warped, visible = self.warped(displacement)
        others = self.others(warped, visible)
        from .coarse import correlation

        after = correlation(warped, others, visible)
        before = correlation(self.moving[-1][:, :, 0], others, torch.ones_like(visible))
        return refuse(displacement, after, before, visible[0, 0].numel(), self.config)

    def others(self, warped: Tensor, visible: Tensor) -> Tensor:
        from .consensus import others_mean

        return others_mean(warped, visible, self.weights)

    def warped(self, displacement: Tensor) -> tuple[Tensor, Tensor]:
        grid = base_grid(*self.levels[-1], displacement) + displacement
        return sample(self.moving[-1], grid)[:, :, 0], inside(grid)

    def evidence(self, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """Agreement with the others after and before registration, per image."""
        warped, visible = self.warped(displacement)
        after = agreement_with_others(warped, visible, self.weights).mean(0)
        level = self.moving[-1][:, :, 0]
        before = agreement_with_others(level, torch.ones_like(level), self.weights).mean(0)
        return after, before

    def consensus(self, displacement: Tensor, rejected: Tensor, evidence: tuple[Tensor, Tensor], round: int) -> Consensus:
        """The registered mean, or the plain mean for the images whose candidates do not agree better registered."""
        after, before = evidence
        plain = no_gain(after, before, self.levels[-1][0] * self.levels[-1][1], self.config.margin)
        for image in plain.nonzero()[:, 0].tolist():
            log.info("image %d keeps the plain mean: agreement %.3f registered, %.3f plain", image, after[image], before[image])
        field = resize_field(displacement, *self.size) * (~plain)[None, :, None, None, None]
        grid = base_grid(*self.size, field) + field
        registered = average(sample(self.usable.images, grid), inside(grid), self.weights, self.config.consensus)
        return Consensus(
            images=registered,
            agreement=torch.where(plain, before, after).clamp(0, 1),
            seeds=self.usable.seeds,
            round=round,
            displacement=to_pixels(field),
            rejected=rejected | plain[None],
            left_out=self.usable.left_out,
        )

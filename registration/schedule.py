"""The schedule that finds the warps: rounds over a pyramid, with the target averaged again on every level."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .agreement import agreement_with_others
from .coarse import AFFINE, HOMOGRAPHY, TRANSLATION, keep_better, phase_start, refine
from .config import RegistrationConfig
from .contrast import blur, gray, level_sizes, local_contrast, resize
from .fine import refine_flow
from .target import Target
from .warp import Warp, homography_grid, inside, remove_shared_homography, sample

_START_SIZE = 56  # the first round works on levels up to this size
_EVIDENCE_BLUR = 1.5  # pixels of the finest level


class Schedule:
    """Registration of one set of candidates to their own, ever sharper mean."""

    def __init__(
        self,
        candidates: Float[Tensor, "seed image channel height width"],
        weights: Float[Tensor, " seed"],
        config: RegistrationConfig,
    ) -> None:
        self.config, self.weights = config, weights
        self.shorter = min(candidates.shape[-2:])
        self.sizes = level_sizes(candidates.shape[-2], candidates.shape[-1], config.coarse_size)
        self.moving = _pyramid(candidates, self.sizes)
        self.start_level = max(i for i, size in enumerate(self.sizes) if i == 0 or min(size) <= _START_SIZE)
        self.identity = torch.eye(3, device=candidates.device).repeat(*candidates.shape[:2], 1, 1)

    @property
    def evidence(self) -> Float[Tensor, "seed image height width"]:
        """The candidates as the guard looks at them.

        They are blurred: resampling between pixels removes noise, and on sharp images any warp would look like a gain.
        """
        return blur(self.moving[-1], _EVIDENCE_BLUR)

    def estimate(self) -> Warp:
        """The warps after all rounds; nothing is refused yet."""
        homographies = self.first_round()
        for _ in range(1, self.config.rounds):
            homographies = self.next_round(homographies)
        return Warp(homographies, self.flow(homographies))

    def first_round(self) -> Float[Tensor, "seed image 3 3"]:
        """Homographies on the low levels, from the identity and from phase correlation; per image the better start.

        Judged on the whole group: a repetitive texture misleads phase correlation, but then the seeds disagree.
        """
        low = self.moving[: self.start_level + 1]
        phase = phase_start(low[-1], self.target(self.identity, low[-1]), self.config.max_displacement)
        # Both starts go through in one batch, as if there were twice as many images.
        homographies = torch.cat([self.identity, phase], dim=1)
        for level, moving in enumerate(low):
            stages = [(AFFINE, 3), (HOMOGRAPHY, 3)] if level else [(TRANSLATION, 2), (AFFINE, 3)]
            if len(self.sizes) == 1:
                stages.append((HOMOGRAPHY, 3))
            homographies = self.improve(homographies, moving.repeat(1, 2, 1, 1), stages)
        agreement = agreement_with_others(*self.warped(homographies, low[-1].repeat(1, 2, 1, 1)), self.weights).mean(0)
        from_identity, from_phase = agreement.chunk(2)
        first, second = homographies.chunk(2, dim=1)
        return torch.where((from_phase > from_identity)[:, None, None], second, first)

    def next_round(self, homographies: Float[Tensor, "seed image 3 3"]) -> Float[Tensor, "seed image 3 3"]:
        """Homographies improved on every level but the lowest."""
        finest = len(self.sizes) - 1
        for level in range(min(1, finest), finest + 1):
            homographies = self.improve(homographies, self.moving[level], [(HOMOGRAPHY, 3)])
        return homographies

    def improve(
        self, homographies: Tensor, moving: Tensor, stages: list[tuple[tuple[int, ...], int]]
    ) -> Float[Tensor, "seed image 3 3"]:
        """Gauss-Newton against a new target on one level; kept where likelier, the shared warp removed."""
        target, proposal = self.target(homographies, moving), homographies
        for free, steps in stages:
            proposal = refine(proposal, moving, target, free, steps)
        return remove_shared_homography(keep_better(proposal, homographies, moving, target))

    def flow(self, homographies: Float[Tensor, "seed image 3 3"]) -> Tensor | None:
        """The dense flow, for images that are large enough and moved enough for one to matter."""
        if self.config.method != "coarse_to_fine" or self.shorter < self.config.fine_min_size:
            return None
        moved = Warp(homographies).displacement(*self.sizes[0]).square().sum(-1).mean(dim=(-2, -1)).sqrt().mean(0) / 2
        enough = moved >= self.config.fine_min_displacement
        if not bool(enough.any()):
            return None
        flow = refine_flow(homographies, self.moving[-1], self.target(homographies, self.moving[-1]))
        return flow * enough[:, None, None, None]

    def target(self, homographies: Float[Tensor, "seed image 3 3"], moving: Tensor) -> Target:
        """The mean of the warped candidates on one level."""
        return Target(*self.warped(homographies, moving), self.weights)

    def warped(self, homographies: Float[Tensor, "seed image 3 3"], moving: Tensor) -> tuple[Tensor, Tensor]:
        """The warped candidates on one level, and where they show something."""
        grid = homography_grid(homographies, moving.shape[-2], moving.shape[-1])
        return sample(moving[:, :, None], grid)[:, :, 0], inside(grid)


def _pyramid(candidates: Tensor, sizes: list[tuple[int, int]]) -> list[Float[Tensor, "seed image height width"]]:
    """Gray candidates at each size, coarse first, their contrast normalised."""
    finest = resize(gray(candidates), sizes[-1])[:, :, 0]
    finest = finest / finest.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(1e-30)
    return [local_contrast(resize(finest, size)) for size in sizes]

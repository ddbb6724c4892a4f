"""The coarse stage: one homography per candidate image, by robust Gauss-Newton on one level of a pyramid."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .agreement import correlation
from .target import Target
from .warp import homography_grid, inside, normalised, sample

TRANSLATION = (2, 5)
AFFINE = (0, 1, 2, 3, 4, 5)
HOMOGRAPHY = (0, 1, 2, 3, 4, 5, 6, 7)

_PRIOR_DEVIATION = 0.06  # expected size of a homography's entries beyond the identity, in [-1, 1] units
_LARGEST_STEP = 0.2
_INDEPENDENT = 3.0  # pixels per independent observation when two warps are weighed against each other


def phase_start(
    moving: Float[Tensor, "seed image height width"], target: Target, max_displacement: float
) -> Float[Tensor, "seed image 3 3"]:
    """A translation by phase correlation (Kuglin & Hines 1975), or the identity where that fits better.

    Args:
        moving: candidates on the target's level, contrast normalised.
        max_displacement: largest shift considered, as a share of the shorter side.
    """
    height, width = target.size
    device = moving.device
    window = torch.hann_window(height, periodic=False, device=device)[:, None]
    window = window * torch.hann_window(width, periodic=False, device=device)
    spectrum = torch.fft.rfft2(moving * window) * torch.fft.rfft2(target.others * window).conj()
    surface = torch.fft.irfft2(spectrum / spectrum.abs().clamp_min(1e-12), s=(height, width))
    rows = torch.fft.fftfreq(height, 1 / height, device=device)
    columns = torch.fft.fftfreq(width, 1 / width, device=device)
    bound = max_displacement * min(height, width)
    near = (rows.abs()[:, None] <= bound) & (columns.abs() <= bound)
    best = surface.masked_fill(~near, -torch.inf).flatten(-2).argmax(-1)
    identity = torch.eye(3, device=device).expand(*moving.shape[:2], 3, 3)
    start = identity.clone()
    start[..., 0, 2] = columns[best % width] * (2 / width)
    start[..., 1, 2] = rows[best // width] * (2 / height)
    return keep_better(start, identity, moving, target)


def keep_better(
    proposal: Float[Tensor, "seed image 3 3"],
    previous: Float[Tensor, "seed image 3 3"],
    moving: Float[Tensor, "seed image height width"],
    target: Target,
) -> Float[Tensor, "seed image 3 3"]:
    """Per candidate image the likelier of two homographies; under the previous one the target was formed.

    With n independent pixels the log-likelihood of a correlation c is ``-n/2 ln(1 - c^2)`` up to a constant; the
    prior of a homography is the one that `refine` uses.
    """
    grid = homography_grid(proposal, *target.size)
    views = (
        (proposal, sample(moving[:, :, None], grid)[:, :, 0], inside(grid)),
        (previous, target.warped, target.visible),
    )
    plausible = []
    for homographies, warped, visible in views:
        match = correlation(warped, target.others, visible).clamp_min(0)
        likelihood = -target.size[0] * target.size[1] / _INDEPENDENT / 2 * (1 - match**2).clamp_min(1e-6).log()
        beyond = homographies - torch.eye(3, device=moving.device)
        plausible.append(likelihood - beyond.square().sum((-2, -1)) / (2 * _PRIOR_DEVIATION**2))
    return torch.where((plausible[0] > plausible[1])[..., None, None], proposal, previous)


def refine(
    homographies: Float[Tensor, "seed image 3 3"],
    moving: Float[Tensor, "seed image height width"],
    target: Target,
    free: tuple[int, ...],
    steps: int,
) -> Float[Tensor, "seed image 3 3"]:
    """Homographies after a few steps of inverse compositional Gauss-Newton.

    Minimises ``sum_x huber(moving(W(x)) - gain target(x)) / noise^2 + |p|^2 / prior^2`` over the ``free`` entries p
    of W - I: with J the target's Jacobian and w Huber's weights each step solves
    ``(sum w J J' + 1/prior^2) s = sum w J r + p / prior^2`` and composes W with the inverse of I + s.
    """
    count = len(free)
    device = moving.device
    rows, columns = torch.triu_indices(count, count, device=device)
    place = torch.zeros(count, count, dtype=torch.long, device=device)
    place[rows, columns] = place[columns, rows] = torch.arange(len(rows), device=device)
    index = torch.tensor(free, device=device)
    identity = torch.eye(3, device=device)
    prior = torch.eye(count, device=device) / _PRIOR_DEVIATION**2
    jacobian = target.jacobian(free)
    products = jacobian[:, rows] * jacobian[:, columns]
    for _ in range(steps):
        grid = homography_grid(homographies, *target.size)
        residual, weight, gain = target.compare(sample(moving[:, :, None], grid)[:, :, 0], inside(grid))
        weight = weight * gain
        # One product per image, all seeds at once: (image, seed, pixel) @ (image, pixel, entry).
        slope = (weight * residual).flatten(-2).transpose(0, 1) @ jacobian.mT
        upper = (weight * gain).flatten(-2).transpose(0, 1) @ products.mT
        system = upper.transpose(0, 1)[..., place] + prior
        beyond = (homographies - identity).flatten(-2)[..., index]
        step = torch.linalg.solve(system, slope.transpose(0, 1) + beyond / _PRIOR_DEVIATION**2)
        increment = identity.flatten().repeat(*step.shape[:2], 1)
        increment[..., index] += step.clamp(-_LARGEST_STEP, _LARGEST_STEP)
        homographies = normalised(homographies @ torch.linalg.inv(increment.reshape(*step.shape[:2], 3, 3)))
    return homographies

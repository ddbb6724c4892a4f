"""The coarse stage: one homography per candidate image, by Gauss-Newton from a phase-correlation start.

Inverse compositional alignment (Baker & Matthews, IJCV 2004): the derivative is that of the target, so that all
candidates of one image share it, and every step costs one warp and one small matrix product.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .contrast import gradients
from .warp import base_grid, homography_grid, inside, normalised, sample

TRANSLATION = (2, 5)
AFFINE = (0, 1, 2, 3, 4, 5)
HOMOGRAPHY = (0, 1, 2, 3, 4, 5, 6, 7)

_HUBER = 1.0  # residuals beyond this many robust deviations count linearly
_CORRELATED = 20.0  # pixels per independent observation: neighbours share noise and texture
_PRIOR_DEVIATION = 0.06  # expected size of a homography's entries beyond the identity, in [-1, 1] units
_LARGEST_STEP = 0.2


def correlation(
    first: Float[Tensor, "*batch height width"], second: Tensor, weight: Tensor
) -> Float[Tensor, "*batch"]:
    """Normalised cross-correlation over the last two dimensions, in [-1, 1]; 1 for two constant images."""
    total = weight.sum(dim=(-2, -1)).clamp_min(1e-6)

    def mean(values: Tensor) -> Tensor:
        return (values * weight).sum(dim=(-2, -1)) / total

    mean_first, mean_second = mean(first), mean(second)
    covariance = mean(first * second) - mean_first * mean_second
    variances = (mean(first * first) - mean_first**2).clamp_min(0) * (mean(second * second) - mean_second**2).clamp_min(0)
    return ((covariance + 1e-8) / (variances.sqrt() + 1e-8)).clamp(-1, 1)


def phase_start(
    moving: Float[Tensor, "seed image 1 height width"],
    target: Target,
    max_displacement: float,
) -> Float[Tensor, "seed image 3 3"]:
    """A translation by phase correlation (Kuglin & Hines 1975), or the identity where it does not raise the NCC."""
    height, width = target.size
    device = moving.device
    window = torch.hann_window(height, periodic=False, device=device)[:, None]
    window = window * torch.hann_window(width, periodic=False, device=device)
    spectrum = torch.fft.rfft2(moving[:, :, 0] * window) * torch.fft.rfft2(target.others * window).conj()
    surface = torch.fft.irfft2(spectrum / spectrum.abs().clamp_min(1e-12), s=(height, width))
    rows = torch.fft.fftfreq(height, 1 / height, device=device)
    columns = torch.fft.fftfreq(width, 1 / width, device=device)
    bound = max_displacement * min(height, width)
    near = (rows.abs()[:, None] <= bound) & (columns.abs() <= bound)
    best = surface.masked_fill(~near, -torch.inf).flatten(-2).argmax(-1)
    start = torch.eye(3, device=device).repeat(*moving.shape[:2], 1, 1)
    start[..., 0, 2] = columns[best % width] * (2 / width)
    start[..., 1, 2] = rows[best // width] * (2 / height)
    identity = torch.eye(3, device=device).expand_as(start)
    return keep_better(start, identity, moving, target)


def keep_better(
    proposal: Tensor, previous: Tensor, moving: Tensor, target: Target
) -> Float[Tensor, "seed image 3 3"]:
    """Per candidate image the homography with the higher NCC to the other candidates."""
    scores = []
    for homographies in (proposal, previous):
        grid = homography_grid(homographies, *target.size)
        scores.append(correlation(sample(moving, grid)[:, :, 0], target.others, inside(grid)))
    identity = torch.eye(3, device=moving.device)
    penalty = [(h - identity).square().sum((-2, -1)) / (2 * _PRIOR_DEVIATION**2) for h in (proposal, previous)]
    unexplained = [(1 - score.clamp_min(0).square()).clamp_min(1e-6) for score in scores]
    independent = target.size[0] * target.size[1] / INDEP
    gain = independent / 2 * (unexplained[1] / unexplained[0]).log()
    better = (gain > penalty[0] - penalty[1]) if MAP else scores[0] > scores[1]
    return torch.where(better[..., None, None], proposal, previous)


MAP = True
INDEP = 20.


class Target:
    """What candidates are aligned to on one level: their mean, with the derivatives of every Gauss-Newton step.

    For ``W(x; p) = ((1+p0) x + p1 y + p2, p3 x + (1+p4) y + p5) / (1 + p6 x + p7 y)`` the row of the Jacobian at the
    identity is ``(gx x, gx y, gx, gy x, gy y, gy, -(gx x + gy y) x, -(gx x + gy y) y)``. The derivatives are shared;
    the values a candidate is compared with are the mean of the *other* candidates, for its own noise would hold it
    where it is.
    """

    def __init__(self, warped: Float[Tensor, "seed image height width"], visible: Tensor, weights: Tensor) -> None:
        weight = weights[:, None, None, None] * visible.clamp_min(1e-3)
        total, share = (weight * warped).sum(0), weight.sum(0)
        own = OWN * weight
        self.mean = total / share
        self.others = (total - own * warped) / (share - own).clamp_min(1e-12)
        self.size = (warped.shape[-2], warped.shape[-1])
        self.gx, self.gy = gradients(self.mean[:, None])

    def jacobian(self, free: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The Jacobian of the free parameters `(image, k, pixel)` and its pairwise products `(image, k*k, pixel)`."""
        gx, gy = self.gx.flatten(-2), self.gy.flatten(-2)
        x, y = base_grid(*self.size, gx).reshape(-1, 2).unbind(-1)
        along = gx * x + gy * y
        columns = [gx * x, gx * y, gx, gy * x, gy * y, gy, -along * x, -along * y]
        jacobian = torch.stack([columns[k] for k in free], dim=1)
        return jacobian, (jacobian[:, :, None] * jacobian[:, None]).flatten(1, 2)


def compare(
    warped: Float[Tensor, "seed image height width"], others: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual to the other candidates' mean at its best gain, Huber's weights of it, and that gain."""
    gain = (visible * warped * others).sum((-2, -1)) / (visible * others * others).sum((-2, -1)).clamp_min(1e-9)
    gain = gain.clamp(GMIN, 2.0)[..., None, None]
    residual = warped - gain * others
    return residual, robust_weight(residual, visible), gain


OWN = 1.0
GMIN = 0.1


def refine(
    homographies: Float[Tensor, "seed image 3 3"],
    moving: Float[Tensor, "seed image 1 height width"],
    target: Target,
    free: tuple[int, ...],
    steps: int,
) -> Float[Tensor, "seed image 3 3"]:
    """Homographies after a few robust Gauss-Newton steps on one level of the pyramid.

    Minimises ``sum_x huber(moving(W(x)) - gain target(x)) + |p|^2 / prior^2`` over the ``free`` entries of ``W``.
    """
    jacobian, products = target.jacobian(free)
    index = torch.tensor(free, device=homographies.device)
    count = len(free)
    prior = torch.eye(count, device=homographies.device) / _PRIOR_DEVIATION**2
    identity = torch.eye(3, device=homographies.device)
    for _ in range(steps):
        grid = homography_grid(homographies, *target.size)
        residual, weight, gain = compare(sample(moving, grid)[:, :, 0], target.others, inside(grid))
        weight = (weight * gain).flatten(-2)
        normal = torch.einsum("nbp,bkp->nbk", weight * gain[..., 0], products).unflatten(-1, (count, count))
        slope = torch.einsum("nbp,bkp->nbk", weight * residual.flatten(-2), jacobian)
        offset = (homographies - identity).flatten(-2)[..., index]
        step = torch.linalg.solve(normal + prior, slope + offset @ prior).clamp(-_LARGEST_STEP, _LARGEST_STEP)
        increment = identity.flatten().repeat(*step.shape[:2], 1)
        increment[..., index] += step
        homographies = normalised(homographies @ torch.linalg.inv(increment.unflatten(-1, (3, 3))))
    return homographies


def robust_weight(residual: Float[Tensor, "*batch height width"], mask: Tensor) -> Float[Tensor, "*batch height width"]:
    """Huber weights over the noise variance, per independent observation: a Gauss-Newton sum of them is information.

    The deviation is 1.2533 times the mean absolute residual, which it is for a normal distribution.
    """
    size = residual.abs()
    deviation = 1.2533 * (size * mask).sum((-2, -1), keepdim=True) / mask.sum((-2, -1), keepdim=True).clamp_min(1)
    deviation = deviation.clamp_min(1e-3)
    huber = (_HUBER * deviation / size.clamp_min(1e-12)).clamp_max(1)
    return mask * huber / (deviation**2 * _CORRELATED)

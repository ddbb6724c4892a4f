"""The fine stage: a dense, smooth flow on top of the homographies.

Lucas-Kanade (IJCAI 1981) with a Gaussian window. The window sums are formed on a grid of cells: after the window
nothing finer is left in them, and it makes them cheap.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .contrast import blur
from .target import Target
from .warp import Warp, inside, sample

_CELL = 4  # pixels per side of a cell
_WINDOWS = (0.10, 0.08, 0.07, 0.07)  # sigma of the window in each iteration, as a share of the shorter side
_SMOOTHING = 0.03  # sigma of the smoothing of the flow, likewise
_PRIOR_DEVIATION = 0.03  # expected size of the flow, in [-1, 1] units
_LARGEST_STEP = 0.04


def refine_flow(
    homographies: Float[Tensor, "seed image 3 3"], moving: Float[Tensor, "seed image height width"], target: Target
) -> Float[Tensor, "seed image rows columns 2"]:
    """The flow, one vector per cell in [-1, 1] units, that brings warped candidates onto the target.

    Each iteration solves, per cell, ``(sum w g g' + 1/prior^2) s = sum w g r + flow/prior^2`` with r the residual of
    the warped candidate, g the gradient of the target and w Huber's weights in a Gaussian window; the flow loses s and
    is smoothed.
    """
    height, width = target.size
    cells = (-(-height // _CELL), -(-width // _CELL))
    slope = torch.stack([target.across, target.down], dim=1)
    outer = torch.stack([target.across**2, target.across * target.down, target.down**2], dim=1)
    flow = moving.new_zeros(*moving.shape[:2], *cells, 2)
    for window in _WINDOWS:
        grid = Warp(homographies, flow).grid(height, width)
        residual, weight, gain = target.compare(sample(moving[:, :, None], grid)[:, :, 0], inside(grid))
        weight = weight * gain
        terms = torch.cat([(weight * gain)[:, :, None] * outer, (weight * residual)[:, :, None] * slope], dim=2)
        step = _solve(_window_sums(terms, cells, window * min(height, width)), flow)
        flow = _smooth(flow - step.clamp(-_LARGEST_STEP, _LARGEST_STEP), _SMOOTHING * min(height, width))
    return flow


def _window_sums(terms: Tensor, cells: tuple[int, int], sigma: float) -> Tensor:
    """Sums over a Gaussian window of ``sigma`` pixels, one per cell: means of cells, blurred, times its area."""
    pooled = F.interpolate(terms.flatten(0, 1), size=cells, mode="area")
    return blur(pooled.reshape(*terms.shape[:3], *cells), sigma / _CELL) * (2 * torch.pi * sigma**2)


def _solve(sums: Float[Tensor, "seed image 5 rows columns"], flow: Tensor) -> Tensor:
    """The 2 x 2 systems of all cells, in closed form."""
    precision = 1 / _PRIOR_DEVIATION**2
    xx, xy, yy, x, y = sums.unbind(dim=2)
    xx, yy = xx + precision, yy + precision
    x, y = x + precision * flow[..., 0], y + precision * flow[..., 1]
    determinant = xx * yy - xy * xy
    return torch.stack([(yy * x - xy * y) / determinant, (xx * y - xy * x) / determinant], dim=-1)


def _smooth(flow: Tensor, sigma: float) -> Tensor:
    return blur(flow.movedim(-1, -3), sigma / _CELL).movedim(-3, -1)

"""The fine stage: a dense, smooth flow on top of the homographies.

Lucas-Kanade (IJCAI 1981) with a Gaussian window, the derivative taken from the target (inverse compositional). The
window sums are formed on a grid of cells: after the window nothing finer is left in them, and it makes them cheap.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .coarse import Target, compare
from .contrast import blur
from .warp import base_grid, inside, resize_field, sample, transform

_CELL = 4  # pixels per side of a cell
_WINDOWS = (0.10, 0.08, 0.07, 0.07)  # sigma of the window in each iteration, as a share of the shorter side
_SMOOTHING = 0.03  # sigma of the smoothing of the flow, likewise
_PRIOR_DEVIATION = 0.03  # expected size of the flow, in [-1, 1] units
_LARGEST_STEP = 0.04


@dataclass(frozen=True)
class Warp:
    """A homography per candidate image and, once the fine stage ran, a flow on a coarse grid applied before it."""

    homographies: Float[Tensor, "seed image 3 3"]
    flow: Float[Tensor, "seed image rows columns 2"] | None = None

    def grid(self, height: int, width: int) -> Float[Tensor, "seed image height width 2"]:
        """Where the warp sends the pixel centres of an image of this size."""
        places = base_grid(height, width, self.homographies)
        if self.flow is not None:
            places = places + resize_field(self.flow, height, width)
        return transform(self.homographies[..., None, None, :, :], places)

    def displacement(self, height: int, width: int) -> Float[Tensor, "seed image height width 2"]:
        """`grid` less the pixel centres, in [-1, 1] units."""
        return self.grid(height, width) - base_grid(height, width, self.homographies)


def refine_flow(
    warp: Warp, moving: Float[Tensor, "seed image 1 height width"], target: Target
) -> Warp:
    """The warp with a flow estimated on one level of the pyramid.

    Each iteration solves, per cell, ``(sum w g g' + 1/prior^2) step = sum w g r - flow/prior^2`` with r the residual
    of the warped candidate, g the gradient of the target and w Huber's weight inside a Gaussian window.
    """
    height, width = target.size
    cells = (-(-height // _CELL), -(-width // _CELL))
    gx, gy = target.gx, target.gy
    outer = torch.stack([gx * gx, gx * gy, gy * gy], dim=1)
    slope = torch.stack([gx, gy], dim=1)
    flow = warp.flow if warp.flow is not None else gx.new_zeros(*moving.shape[:2], *cells, 2)
    for window in _WINDOWS:
        grid = Warp(warp.homographies, flow).grid(height, width)
        residual, weight, gain = compare(sample(moving, grid)[:, :, 0], target.others, inside(grid))
        weight = weight * gain
        sums = torch.cat([(weight * gain)[:, :, None] * outer, (weight * residual)[:, :, None] * slope], dim=2)
        sums = _window_sums(sums, cells, window * min(height, width))
        step = _solve(sums, flow)
        flow = _smooth(flow - step.clamp(-_LARGEST_STEP, _LARGEST_STEP), _SMOOTHING * min(height, width))
    return Warp(warp.homographies, flow)


def _window_sums(values: Tensor, cells: tuple[int, int], sigma: float) -> Tensor:
    """Sums over a Gaussian window of ``sigma`` pixels, one per cell: means of cells, blurred, times the window's area."""
    flat = values.reshape(-1, *values.shape[-3:])
    pooled = F.interpolate(flat, size=cells, mode="area").reshape(*values.shape[:3], *cells)
    return blur(pooled, sigma / _CELL) * (2 * torch.pi * sigma**2)


def _solve(sums: Float[Tensor, "seed image 5 rows columns"], flow: Tensor) -> Tensor:
    """The 2 x 2 systems of all cells, in closed form."""
    prior = 1 / _PRIOR_DEVIATION**2
    xx, xy, yy, bx, by = sums.unbind(dim=2)
    xx, yy = xx + prior, yy + prior
    bx, by = bx + prior * flow[..., 0], by + prior * flow[..., 1]
    determinant = xx * yy - xy * xy
    return torch.stack([(yy * bx - xy * by) / determinant, (xx * by - xy * bx) / determinant], dim=-1)


def _smooth(flow: Tensor, sigma: float) -> Tensor:
    return blur(flow.movedim(-1, -3), sigma / _CELL).movedim(-3, -1)

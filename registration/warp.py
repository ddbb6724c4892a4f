"""Sampling grids, homographies and displacement fields.

A warp maps a place of the consensus to the place in a candidate that shows the same thing: the registered image is
``candidate(x + displacement(x))``. Inside this folder places are in [-1, 1] between the outer *edges* of the image
(``align_corners=False``), so that one warp serves every level of a pyramid; in pixels it is half the size times that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_SMALLEST_SCALE = 0.1


def base_grid(height: int, width: int, like: Tensor) -> Float[Tensor, "height width 2"]:
    """Centres of the pixels, (x, y) in [-1, 1]; shared between calls, so never to be changed in place."""
    return homogeneous(height, width, like)[:2].movedim(0, -1)


def homogeneous(height: int, width: int, like: Tensor) -> Float[Tensor, "3 height width"]:
    """Centres of the pixels as planes of x, y and 1; shared between calls, so never to be changed in place."""
    return _centres(height, width, like.device, like.dtype)


@lru_cache(maxsize=64)
def _centres(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "3 height width"]:
    x = (torch.arange(width, device=device, dtype=dtype) * 2 + 1) / width - 1
    y = (torch.arange(height, device=device, dtype=dtype) * 2 + 1) / height - 1
    across, down = torch.meshgrid(x, y, indexing="xy")
    return torch.stack([across, down, torch.ones_like(across)])


def homography_grid(homographies: Float[Tensor, "*images 3 3"], height: int, width: int) -> Tensor:
    """Where each homography sends the pixel centres, `(*images, height, width, 2)`."""
    places = homogeneous(height, width, homographies).reshape(3, -1)
    # By planes of x, y and scale: one thin product and one division, both along contiguous memory.
    planes = (homographies.reshape(-1, 3) @ places).reshape(*homographies.shape[:-1], height, width)
    return (planes[..., :2, :, :] / planes[..., 2:, :, :].clamp_min_(_SMALLEST_SCALE)).movedim(-3, -1)


def transform(homographies: Float[Tensor, "... 3 3"], points: Float[Tensor, "... 2"]) -> Float[Tensor, "... 2"]:
    """Places of ``points`` under homographies (broadcast over the leading dimensions).

    The denominator is kept away from zero: a homography that near to folding is refused by the guard, and until then
    it must not make a NaN.
    """
    h, x, y = homographies, points[..., 0], points[..., 1]
    scale = (h[..., 2, 0] * x + h[..., 2, 1] * y + h[..., 2, 2]).clamp_min(_SMALLEST_SCALE)
    across = (h[..., 0, 0] * x + h[..., 0, 1] * y + h[..., 0, 2]) / scale
    down = (h[..., 1, 0] * x + h[..., 1, 1] * y + h[..., 1, 2]) / scale
    return torch.stack([across, down], dim=-1)


def sample(
    images: Float[Tensor, "*batch channel height width"], grid: Tensor, mode: str = "bilinear"
) -> Float[Tensor, "*batch channel rows columns"]:
    """Images at the places of ``grid`` `(*batch, rows, columns, 2)`; outside the frame the nearest border pixel."""
    lead = images.shape[:-3]
    flat = F.grid_sample(
        images.reshape(-1, *images.shape[-3:]),
        grid.expand(*lead, *grid.shape[-3:]).reshape(-1, *grid.shape[-3:]),
        mode=mode,
        padding_mode="border",
        align_corners=False,
    )
    return flat.reshape(*lead, *flat.shape[1:])


def inside(grid: Float[Tensor, "*batch height width 2"]) -> Float[Tensor, "*batch height width"]:
    """1 where a place lies in the frame, 0 where the sampled value is only a repeated border."""
    return (grid.abs().amax(-1) <= 1).to(grid.dtype)


def resize_field(field: Float[Tensor, "*batch height width 2"], height: int, width: int) -> Tensor:
    """A field of vectors at another resolution (bilinear; the vectors keep their values, being in [-1, 1] units)."""
    if field.shape[-3:-1] == (height, width):
        return field
    flat = field.reshape(-1, *field.shape[-3:]).permute(0, 3, 1, 2)
    flat = F.interpolate(flat, size=(height, width), mode="bilinear", align_corners=False)
    return flat.permute(0, 2, 3, 1).reshape(*field.shape[:-3], height, width, 2)


def sample_field(field: Float[Tensor, "*batch height width 2"], grid: Tensor) -> Tensor:
    """A field of vectors at the places of ``grid``."""
    return sample(field.movedim(-1, -3), grid).movedim(-3, -1)


def to_pixels(displacement: Float[Tensor, "*batch height width 2"]) -> Float[Tensor, "*batch 2 height width"]:
    """Displacement in pixels, x then y, from one in [-1, 1] units."""
    height, width = displacement.shape[-3:-1]
    half = displacement.new_tensor([width / 2, height / 2])
    return (displacement * half).movedim(-1, -3)


@dataclass(frozen=True)
class Warp:
    """A homography per candidate image and, when the fine stage ran, a flow on a coarse grid applied before it."""

    homographies: Float[Tensor, "seed image 3 3"]
    flow: Float[Tensor, "seed image rows columns 2"] | None = None

    def grid(self, height: int, width: int) -> Float[Tensor, "seed image height width 2"]:
        """Where the warp sends the pixel centres of an image of this size."""
        if self.flow is None:
            return homography_grid(self.homographies, height, width)
        places = base_grid(height, width, self.flow) + resize_field(self.flow, height, width)
        return transform(self.homographies[..., None, None, :, :], places)

    def displacement(self, height: int, width: int) -> Float[Tensor, "seed image height width 2"]:
        """`grid` less the pixel centres, in [-1, 1] units."""
        return self.grid(height, width) - base_grid(height, width, self.homographies)


def remove_shared_homography(
    homographies: Float[Tensor, "seed image 3 3"],
) -> Float[Tensor, "seed image 3 3"]:
    """Homographies whose mean displacement of the four corners over the seeds is zero.

    Registration to an average leaves one warp free (the gauge): that of the average itself. Seeds are alike, so their
    mean warp is taken as the frame.
    """
    corners = homographies.new_tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    # Bounded, so that one wild homography cannot make the mean of the corners degenerate.
    moved = (transform(homographies[..., None, :, :], corners) - corners).clamp(-0.5, 0.5)
    mean = corners + moved.mean(0)
    shared = homography_from_corners(corners, mean)
    return normalised(homographies @ torch.linalg.inv(shared))


def homography_from_corners(source: Float[Tensor, "4 2"], target: Float[Tensor, "*images 4 2"]) -> Tensor:
    """The homographies that send four corners to four places (direct linear solution, last entry 1)."""
    x, y = source.expand_as(target).unbind(-1)
    u, v = target.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows_u = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=-1)
    rows_v = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=-1)
    solution = torch.linalg.solve(torch.cat([rows_u, rows_v], dim=-2), torch.cat([u, v], dim=-1))
    return torch.cat([solution, torch.ones_like(solution[..., :1])], dim=-1).reshape(*target.shape[:-2], 3, 3)


def normalised(homographies: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Homographies scaled so that their last entry is 1."""
    return homographies / homographies[..., 2:, 2:]


def remove_shared_displacement(
    displacement: Float[Tensor, "seed image height width 2"],
) -> Float[Tensor, "seed image height width 2"]:
    """Displacements re-expressed in the frame in which their mean over the seeds is zero.

    With m that mean, the new frame is ``y = x + m(x)``, inverted by fixed-point iteration. Every candidate point stays
    where it was: ``y + d'(y) = x + d(x)``.
    """
    shared = displacement.mean(0)
    base = base_grid(displacement.shape[-3], displacement.shape[-2], displacement)
    place = base - shared
    for _ in range(3):
        place = base - sample_field(shared, place)
    return sample_field(displacement, place[None]) + (place - base)

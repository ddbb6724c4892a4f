"""A linear decoder from the features at a cut to blocks of pixels, by ridge regression.

The features at one place of the grid, behind the rectifiers, are mapped to the block of pixels that the place stands
for, the same map at every place. It is fitted on photos that are run through the server's own model: no labels, no
private image, a few seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .places import Cut

# Of the mean square of a feature.
_RIDGE = 1e-5
_AT_ONCE = 16


@dataclass(frozen=True)
class Decoded:
    """Images that a descent may start at."""

    images: Float[Tensor, "image channel height width"]
    """As the model is given them."""
    error: float
    """Root mean square of what the decoder leaves of the crops that it was fitted on, in the same units: what it leaves
    of others is rather more."""


def decode(
    cut: Cut,
    crops: Float[Tensor, "crop channel height width"],
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Decoded:
    """What the decoder makes of the cut's features.

    Args:
        cut: With the features.
        crops: Public photos as the model is given them.
        dtype: In which the model is run.
        device: On which.
    """
    device = device or torch.device("cpu")
    forward = cut.forward(dtype, device)
    grids = [(place.values.shape[2], place.values.shape[3]) for place in cut.places]
    grid = max(grids, key=lambda size: size[0] * size[1])
    height, width = crops.shape[2:]
    block = (height // grid[0], width // grid[1])
    if block[0] * grid[0] != height or block[1] * grid[1] != width:
        block = (1, 1)  # not one block for each place: each pixel by the place nearest to it
        grid = (height, width)
    count = sum(place.values.shape[1] for place in cut.places) + 1
    square = torch.zeros(count, count, dtype=torch.float64)
    mixed = torch.zeros(count, crops.shape[1] * block[0] * block[1], dtype=torch.float64)
    whole = 0.0
    with torch.no_grad():
        for some in torch.split(crops.to(device, dtype), _AT_ONCE):
            features = _rows([value.clamp_min(0) for value in forward(some)], grid)
            blocks = F.unfold(some, block, stride=block).transpose(1, 2).flatten(0, 1)
            square += (features.T @ features).cpu().double()
            mixed += (features.T @ blocks).cpu().double()
            whole += float(blocks.double().square().sum())
    ridge = _RIDGE * float(square.diagonal().mean()) * torch.eye(count, dtype=torch.float64)
    weights = torch.linalg.solve(square + ridge, mixed)
    known = _rows([place.values for place in cut.places], grid) @ weights
    images = len(cut.places[0].values)
    columns = known.reshape(images, grid[0] * grid[1], -1).transpose(1, 2)
    left = whole - float((weights * (2 * mixed - square @ weights)).sum())
    error = (max(left, 0.0) / crops.numel()) ** 0.5
    return Decoded(F.fold(columns, (height, width), block, stride=block), error)


def _rows(values: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """One row for each place of the grid, with a constant."""
    alike = [value if tuple(value.shape[2:]) == grid else F.interpolate(value, grid) for value in values]
    rows = torch.cat(alike, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)

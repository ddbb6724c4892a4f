"""Levels of an input that no equation tells where batch norm on the batch's own statistics stands behind.

Where all that sees a class of even or odd places sees the whole of it, as a 1x1 convolution with a stride does and the
middle of a larger one, a constant on it is removed with the mean. Behind a rectifier its least value is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry import gradient_matrix
from .statistics_equations import Reader

# A direction of places that the equations see less of than this, relative, is in none of them.
_UNSEEN = 1e-9
# A level that no equation sees is where the least units are zero: so many within this share of the root mean square,
# or, where that is less than noise makes of zeros, within so many of its deviations. There more must be alike, since
# chance brings two so near to each other in a channel without zeros.
_LEAST_UNITS, _ALIKE = 2, 1e-4
_LEAST_IN_NOISE, _WITHIN = 4, 10.0


def levels_unseen(readers: Sequence[Reader], size: tuple[int, int]) -> list[Float[Tensor, " place"]]:
    """Classes of places, as images outermost, whose common level is in no equation: one there and zero elsewhere.

    Args:
        readers: Convolutions that read the value.
        size: Height and width of the value.
    """
    matrices, found = _matrices(readers, size), list[Tensor]()
    for chosen in _classes(readers, size):
        seen = sum(float((chosen @ matrix).norm()) for matrix in matrices)
        each = sum(float((chosen[:, None] * matrix).norm()) for matrix in matrices)
        if seen <= _UNSEEN * each:
            found.append(chosen)
    return found


def all_seen(readers: Sequence[Reader], size: tuple[int, int]) -> bool:
    """Whether each class of places of a stride is in some equation of a gradient.

    Args:
        readers: Convolutions that read the value.
        size: Height and width of the value.
    """
    lengths = torch.stack([one.square().sum(dim=1) for one in _matrices(readers, size)]).sum(dim=0)
    return all(bool((chosen * lengths).any()) for chosen in _classes(readers, size))


def _matrices(readers: Sequence[Reader], size: tuple[int, int]) -> list[Float[Tensor, "place entry"]]:
    """What each place of the value enters of the gradients, a matrix for each convolution."""
    return [gradient_matrix(one.kind, size, one.in_front(one.first())) for one in readers]


def _classes(readers: Sequence[Reader], size: tuple[int, int]) -> Iterator[Float[Tensor, " place"]]:
    """One at the places of each residue of the largest stride, as images outermost, and zero elsewhere."""
    rows, columns = (max(one.kind.stride[axis] for one in readers) for axis in (0, 1))
    for row in range(rows):
        for column in range(columns):
            grid = torch.zeros(len(readers[0].derivative), *size, dtype=torch.float64)
            grid[:, row::rows, column::columns] = 1
            yield grid.flatten()


def levelled(
    values: Float[Tensor, "image channel height width"],
    levels: Sequence[Float[Tensor, " place"]],
    noise: Float[Tensor, "image channel height width"] | None = None,
) -> tuple[Tensor, Tensor]:
    """With each channel's level on classes of places that no equation tells, and the doubt about it.

    Behind a rectifier the least units are zero. A channel in which too few units are least alike may have none.

    Args:
        values: Of any level there.
        levels: The classes.
        noise: Deviation of the values beside their level; None for next to none.
    """
    doubt = torch.zeros_like(values)
    if not levels:
        return values, doubt
    values, alike = values.clone(), _ALIKE * float(values.square().mean().sqrt())
    noise = torch.zeros_like(values) if noise is None else noise
    for level in levels:
        chosen = level.reshape(len(values), 1, *values.shape[2:]).bool().expand_as(values)
        usual = (_channel_sums(torch.where(chosen, noise, 0.0).square()) / level.sum()).sqrt()
        window = (_WITHIN * usual).clamp_min(alike)
        some = torch.where(chosen, values, torch.inf)
        near = some <= some.amin(dim=(0, 2, 3), keepdim=True) + window
        count = _channel_sums(near)
        mean = _channel_sums(torch.where(near, values, 0.0)) / count
        least = torch.where(window > alike, _LEAST_IN_NOISE, _LEAST_UNITS)
        farthest = (values - mean).abs().amax(dim=(0, 2, 3), keepdim=True)
        unsure = torch.where(count < least, farthest, torch.where(window > alike, usual, 0.0))
        doubt = torch.where(chosen, unsure, doubt)
        values = torch.where(chosen, values - mean, values)
    return values, doubt


def _channel_sums(values: Tensor) -> Tensor:
    """The sum of each, over all images and places."""
    return values.sum(dim=(0, 2, 3), keepdim=True)

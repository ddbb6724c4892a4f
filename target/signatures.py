"""What defences leave in an update that anybody can see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import scipy
import torch
from jaxtyping import Bool
from torch import Tensor

# A smaller share of zeros in the typical tensor is that of dead units, not of pruning.
_PRUNED_SHARE = 0.02
# Smallest entries of a tensor that are asked for a threshold; evenly spread ones would be no farther from the smallest
# to the middle than so many times from there on, and an edge is no slope.
_ASKED, _EDGE = 32, 2.0
# Logarithms of the chance that entries which reach down to zero begin so far from it, over all tensors together: below
# the first the smallest are missing, above the second they are there, if so many were asked.
_MISSING, _THERE, _ENOUGH = -20.0, -7.0, 24
# Where so many of all entries are zero, the few others may stand in rows and columns of their own.
_MOSTLY = 0.9
# How many times fewer patterns of zeros than by chance the rows and the columns of one tensor have, and those of all,
# where units that are closed for some of few images left them; and of how many rows and columns of a tensor.
_BLOCKS, _ALL_BLOCKS, _LINES = 2, 3, 512
# Values that recur so often are those of a rounding, not of noise.
_RECURRING = 4


def pruning_slack(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each entry that is zero the smallest magnitude kept in its tensor, 0 for the others; {} without pruning."""
    zeros = {name: g == 0 for name, g in gradients.items()}
    apart = [share for z in zeros.values() if (share := _share_apart(z)) is not None]
    if median(apart or [float(z.float().mean()) for z in zeros.values()]) < _PRUNED_SHARE:
        return {}
    smallest = {name: g[~zeros[name]].abs().min() for name, g in gradients.items() if not bool(zeros[name].all())}
    if not smallest:
        return {}
    # A tensor of which nothing was kept lost its place to entries of other tensors.
    least = torch.stack([value.float() for value in smallest.values()]).min()
    return {name: z * smallest.get(name, least.to(gradients[name])) for name, z in zeros.items() if bool(z.any())}


def is_pruned(gradients: Mapping[str, Tensor], clients: int = 1) -> bool | None:
    """Whether zeros stand where entries were too small to be kept: pruning, top-k. None where that does not show.

    ReLUs that are closed for some of few images leave zeros off whole rows and columns too. But they leave small
    entries beside large ones, down to zero, while a threshold leaves none below it. Entries that are dropped at random
    leave small ones as well. What closed units leave is a union of one block of rows and columns for each image, so
    that many rows, and many columns, have the same zeros; at random hardly any two have. Where rows or columns are too
    narrow, or images or places too many, for that to show, nothing is said.

    Args:
        gradients: By parameter name.
        clients: That they are the average of: an entry that two of them kept with opposite signs may be smaller than
            any that was dropped.
    """
    scattered = [g for g in gradients.values() if (_share_apart(g == 0) or 0.0) >= _PRUNED_SHARE]
    zeros = sum(int((g == 0).sum()) for g in gradients.values()) / sum(g.numel() for g in gradients.values())
    if not scattered and zeros < _MOSTLY:
        # In a single row zeros off whole columns cannot be told from whole columns.
        return False if zeros < _PRUNED_SHARE or any(min(_live(g != 0).shape) > 1 for g in gradients.values()) else None
    chance, asked = _without_threshold(scattered)
    if chance < _MISSING:
        return True
    is_told = asked >= _ENOUGH and chance > _THERE and clients == 1
    return False if is_told and _are_blocks([g == 0 for g in scattered]) else None


def _without_threshold(gradients: Sequence[Tensor]) -> tuple[float, int]:
    """Logarithm of the chance that entries which reach down to zero begin so far from it, and how many were asked.

    Of n entries, spread evenly from zero on, the smallest is at a share of more than x of the n-th with a probability
    of ``(1 - x)^(n - 1)``, whose negative logarithm is exponentially distributed, and the sum of these over tensors
    gamma distributed: of many tensors it is large without a threshold too. Where entries thin out before they end, as
    values around a mean do, an end is no threshold, and says nothing.
    """
    total, tensors, asked = 0.0, 0, 0
    for gradient in gradients:
        # Values that recur are no witnesses of their own.
        sizes = torch.unique(gradient[gradient != 0].abs().double())[: 2 * _ASKED]
        half = len(sizes) // 2
        if half < 2:
            continue
        least, middle, most = float(sizes[0]), float(sizes[half - 1]), float(sizes[2 * half - 1])
        if middle - least <= _EDGE * (most - middle):
            total -= (half - 1) * math.log1p(-least / middle)
            tensors, asked = tensors + 1, asked + half - 1
    chance = float(scipy.special.gammaincc(tensors, total)) if tensors else 1.0
    return math.log(chance) if chance > 0 else -math.inf, asked


def _are_blocks(zeros: Sequence[Tensor]) -> bool:
    """Whether rows, and columns, share their patterns of zeros in each tensor, which they do not by chance."""
    random = torch.Generator().manual_seed(0)
    found, by_chance = 0, 0
    for one in zeros:
        matrix = ~_live(~one).cpu()
        matrix = matrix[torch.randperm(len(matrix), generator=random)[:_LINES]]
        matrix = matrix[:, torch.randperm(matrix.shape[1], generator=random)[:_LINES]]
        flat = matrix.flatten()
        shuffled = flat[torch.randperm(len(flat), generator=random)].reshape(matrix.shape)
        for lines, others in ((matrix, shuffled), (matrix.T, shuffled.T)):
            patterns, usual = _patterns(lines), _patterns(others)
            if _BLOCKS * patterns > usual:
                return False
            found, by_chance = found + patterns, by_chance + usual
    return _ALL_BLOCKS * found <= by_chance


def _live(live: Bool[Tensor, " *axis"]) -> Bool[Tensor, "row column"]:
    """As a matrix of the rows and the columns that hold a live entry; of a vector none."""
    matrix = live.flatten(1) if live.ndim > 1 else live.new_zeros(0, 0)
    return matrix[matrix.any(dim=1)][:, matrix.any(dim=0)]


def _patterns(lines: Bool[Tensor, "line entry"]) -> int:
    return len(torch.unique(lines, dim=0))


def _share_apart(zeros: Bool[Tensor, " *axis"]) -> float | None:
    """The share of zeros among the entries whose row, column and tap hold others: a dead unit leaves whole rows and
    columns of zeros, and a tap that reads nothing but padding is zero for all channels. None where there is no such
    entry, as in a vector.
    """
    if zeros.ndim < 2:
        return None
    whole = torch.zeros_like(zeros)
    for line in ((0,), (1,), tuple(range(2, zeros.ndim))):
        if line:
            others = tuple(axis for axis in range(zeros.ndim) if axis not in line)
            whole = whole | zeros.all(dim=others, keepdim=True)
    left = zeros[~whole]
    return float(left.float().mean()) if left.numel() else None


def without_lowest_level(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rounded gradients with zeros where their level nearest to zero is: that is where rounding puts a zero."""
    found = {}
    for name, g in gradients.items():
        flat = g.flatten()
        found[name] = torch.where(g == flat[flat.abs().argmin()], torch.zeros_like(g), g)
    return found


def is_rounded(gradients: Mapping[str, Tensor]) -> bool:
    """Whether the values of the largest tensor recur, as those of a rounding do."""
    largest = max(gradients.values(), key=Tensor.numel)
    return len(torch.unique(largest)) * _RECURRING <= largest.numel()

"""What defences leave in an update that anybody can see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import torch
from jaxtyping import Bool
from torch import Tensor

# A smaller share of zeros in the typical tensor is that of dead units, not of pruning.
_PRUNED_SHARE = 0.02
# Smallest entries of a tensor that are asked for a threshold; evenly spread ones would be no farther from the smallest
# to the middle than so many times from there on, and an edge is no slope.
_ASKED, _EDGE = 32, 2.0
# Log-probabilities that entries which reach down to zero would begin so far from it: below the first the smallest are
# missing, above the second they are there, if so many were asked.
_MISSING, _THERE, _ENOUGH = -20.0, -7.0, 24
# Where so many of all entries are zero, the few others may stand in rows and columns of their own.
_MOSTLY = 0.9
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
    entries beside large ones, down to zero, while a threshold leaves none below it.

    Args:
        gradients: By parameter name.
        clients: That they are the average of: an entry that two of them kept with opposite signs may be smaller than
            any that was dropped.
    """
    scattered = [g for g in gradients.values() if (_share_apart(g == 0) or 0.0) >= _PRUNED_SHARE]
    zeros = sum(int((g == 0).sum()) for g in gradients.values()) / sum(g.numel() for g in gradients.values())
    if not scattered and zeros < _MOSTLY:
        return False
    probability, asked = _without_threshold(scattered)
    if probability < _MISSING:
        return True
    return False if asked >= _ENOUGH and probability > _THERE and clients == 1 else None


def _without_threshold(gradients: Sequence[Tensor]) -> tuple[float, int]:
    """Log-probability of entries to begin so far from zero though they reach down to it, and of how many that is.

    Of n entries, spread evenly from zero on, the smallest is at a share of more than x of the n-th with a probability
    of ``(1 - x)^(n - 1)``. Where entries thin out before they end, as values around a mean do, an end is no threshold,
    and says nothing.
    """
    probability, asked = 0.0, 0
    for gradient in gradients:
        # Values that recur are no witnesses of their own.
        sizes = torch.unique(gradient[gradient != 0].abs().double())[: 2 * _ASKED]
        half = len(sizes) // 2
        if half < 2:
            continue
        least, middle, most = float(sizes[0]), float(sizes[half - 1]), float(sizes[2 * half - 1])
        if middle - least <= _EDGE * (most - middle):
            probability += (half - 1) * math.log1p(-least / middle)
            asked += half - 1
    return probability, asked


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

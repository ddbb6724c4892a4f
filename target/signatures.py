"""What defences leave in an update that anybody can see."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

import torch
from jaxtyping import Bool
from torch import Tensor

# A smaller share of zeros in the typical tensor is that of dead units, not of pruning.
_PRUNED_SHARE = 0.02
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

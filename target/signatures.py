"""What defences leave in an update that anybody can see."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

import torch
from torch import Tensor

# A smaller share of zeros in the typical tensor is that of dead units, not of pruning.
_PRUNED_SHARE = 0.02
# Values that recur so often are those of a rounding, not of noise.
_RECURRING = 4


def pruning_slack(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each entry that is zero the smallest magnitude kept in its tensor, 0 for the others; {} without pruning."""
    zeros = {name: g == 0 for name, g in gradients.items()}
    if median(float(z.float().mean()) for z in zeros.values()) < _PRUNED_SHARE:
        return {}
    smallest = {name: g[~zeros[name]].abs().min() for name, g in gradients.items() if not bool(zeros[name].all())}
    if not smallest:
        return {}
    # A tensor of which nothing was kept lost its place to entries of other tensors.
    least = torch.stack([value.float() for value in smallest.values()]).min()
    return {name: z * smallest.get(name, least.to(gradients[name])) for name, z in zeros.items() if bool(z.any())}


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

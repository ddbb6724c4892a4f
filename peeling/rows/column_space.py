"""Which units behind a pointwise convolution were open, where the derivative behind them is known and its input is not.

The cotangent of the convolution's output at each place is that of all units, c, where a unit was open and zero where it
was shut; and it lies in the column space of the weight gradient ``D^T A``, which has N dimensions while N is at most
both numbers of channels. For one place after another a linear program takes the vector ``S z`` of that space whose
share of c is between 0 and 1 at every unit, and largest in sum. Nearly no other vector than ``m c`` is within both
bounds at so many units, since the mask has both zeros and ones.
"""

from __future__ import annotations

import numpy as np
import scipy
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from ..refusals import Why
from .space import row_space

# Units whose cotangent is below this share of the place's largest one say nothing.
_SILENT = 1e-4
# What of the place's largest cotangent a bound may be passed by.
_ALLOWED = 1e-5
# Units in a program at first, as a multiple of the dimensions, and how many are added at a time.
_FIRST, _ADDED = 4, 2
_ROUNDS = 12
# Noise over signal, in the weakest direction, above which nothing is looked for.
_LARGEST_NOISE = 0.02


def open_by_columns(
    weight_gradient: Float[Tensor, "output input *ones"], unmasked: Float[Tensor, "place output"]
) -> Bool[Tensor, "place output"] | Why:
    """The units that were open, or why they do not follow.

    Args:
        weight_gradient: Captured, of the pointwise convolution.
        unmasked: Derivative by its output if all units were open.
    """
    columns = row_space(weight_gradient.detach().flatten(1).T, len(unmasked))
    if columns is None or not columns.noise < _LARGEST_NOISE:
        return Why.RANK
    space = columns.basis.T
    found = torch.zeros_like(unmasked, dtype=torch.bool)
    for place, cotangent in enumerate(unmasked):
        heard = cotangent.abs() > _SILENT * cotangent.abs().max()
        shares = _shares((space[heard] / cotangent[heard, None]).numpy(), cotangent[heard].abs().numpy())
        if shares is None:
            return Why.ALIKE_UNITS
        found[place, heard] = torch.from_numpy(shares > 0.5)
    return found


def _shares(matrix: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Of each unit the share of its cotangent; a program over some units first, then with those that pass a bound."""
    units, dimensions = matrix.shape
    weights, allowed = size / size.max(), _ALLOWED * size.max() / size
    aim = -(weights[:, None] * matrix).sum(axis=0)
    asked = np.zeros(units, dtype=bool)
    # Large cotangents bound best.
    asked[np.argsort(-size, kind="stable")[: _FIRST * dimensions]] = True
    for _ in range(_ROUNDS):
        some = matrix[asked]
        found = scipy.optimize.linprog(
            aim,
            A_ub=np.concatenate([some, -some]),
            b_ub=np.concatenate([1 + allowed[asked], allowed[asked]]),
            bounds=(None, None),
            method="highs",
        )
        if found.status == 3:  # unbounded: more units have to be asked
            asked[np.flatnonzero(~asked)[: _ADDED * dimensions]] = True
            continue
        if found.x is None:
            return None
        shares = matrix @ found.x
        passed = np.where(asked, 0.0, np.maximum(shares - 1, -shares) - allowed)
        beyond = np.flatnonzero(passed > 0)
        if not len(beyond):
            return np.asarray(shares)
        asked[beyond[passed[beyond].argsort(kind="stable")[::-1][: _ADDED * dimensions]]] = True
    return None

"""The length of each row, from the gradient that sums up the derivative in front of the rectifier.

With a row known as ``a_p = A_p / t_p`` and its cotangent as ``t_p D_p``, the sum of the derivative over open units is
``sum_p (1 / t_p) m_p (W^T t_p D_p)``: linear in the inverse lengths, with one equation for each channel. Which units a
ceiling holds back depends on the lengths; both are found in turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..tap_solution import fit_lengths
from .unmixed import Rows

_ROUNDS = 6
# A unit is at the ceiling where it is so near to it, as a share of it, or above.
_NEAR = 1e-4


@dataclass(frozen=True)
class Lengths:
    """Rows with their lengths."""

    inputs: Float[Tensor, "place input"]
    cotangents: Float[Tensor, "place output"]
    is_open: Bool[Tensor, "place input"]
    misfit: float
    """What they leave of the gradient in the median channel, relative."""
    error: float
    """Relative, of the length that is known least."""


def place_lengths(
    rows: Rows, weight: Float[Tensor, "output input"], shift_gradient: Float[Tensor, " input"], ceiling: float
) -> Lengths | None:
    """The rows with their lengths; None where no positive lengths explain the gradient.

    Args:
        rows: Up to their lengths.
        weight: Of the convolution that reads them.
        shift_gradient: Captured.
        ceiling: Of the rectifier; infinite where it has none.
    """
    by_input, target = rows.cotangents @ weight, shift_gradient.detach().cpu().double()
    lower = rows.inputs > rows.shut[:, None]
    is_open = lower
    for _ in range(_ROUNDS):
        inverse, misfit, uncertain = fit_lengths((by_input * is_open).T, target)
        if not bool((inverse > 0).all()):
            return None
        inputs = rows.inputs / inverse[:, None]
        below = lower & (inputs < (1 - _NEAR) * ceiling)
        if bool((below == is_open).all()):
            break
        is_open = below
    held = lower & ~is_open
    inputs = torch.where(held, inputs.clamp(max=ceiling) if ceiling < float("inf") else inputs, inputs)
    return Lengths(inputs, rows.cotangents * inverse[:, None], is_open, misfit, max(misfit, float(uncertain.max())))

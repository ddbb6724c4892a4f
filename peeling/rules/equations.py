"""The linear equations in a convolution's input that its weight gradient is, and their least-squares solution.

The entry of the weight gradient for output channel o, input channel c and kernel place k is the sum of ``cotangent[i,
o, y] a[i, c, p]`` over images i and the pairs of places y and p that k joins: ``O K`` equations in the ``N = B H W``
places of each input channel, with one matrix for all channels. Convolutions that read the same value add their
equations.

Rank: ``N <= sum of O K`` is necessary. Where a stride of two splits the places into classes that share no output, each
class needs equations enough of its own; the factorisation, and the spread of the errors that it gives, shows whether.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import gradient_matrix
from ..kinds import Convolution
from ..layers import rounding

# Entries (400 MB in float64), and unknowns of each channel.
LARGEST_MATRIX, MOST_PLACES = 50_000_000, 4096
# A normal matrix with such a ratio between its pivots determines nothing.
_SINGULAR = 1e-12


@dataclass(frozen=True)
class GradientEquations:
    """What one convolution's weight gradient says of its input; scaled so that the right side has length 1."""

    kind: Convolution
    matrix: Tensor
    """``(place, equation)``."""
    given: Tensor
    """``(equation, channel)``."""
    rounding: float
    """Relative error of the right side from the type it was sent in."""


@dataclass(frozen=True)
class Solution:
    """Of all equations together."""

    values: Tensor
    """``(place, channel)``."""
    misfit: float
    """What it leaves of the right sides, relative."""
    deviation: Tensor
    """``(place, channel)``: of the error, for what is left."""


def affordable(kind: Convolution, places: int, outputs: int) -> bool:
    """Whether the matrix of these equations fits into memory, and the convolution is of a form that has it."""
    return kind.groups == 1 and places <= most_places(kind, outputs)


def most_places(kind: Convolution, outputs: int) -> int:
    """Of so many the equations of one convolution fit into memory."""
    return min(MOST_PLACES, LARGEST_MATRIX // (outputs * kind.kernel[0] * kind.kernel[1]))


def gradient_equations(
    kind: Convolution, size: tuple[int, int], weight_gradient: Tensor, cotangent: Tensor
) -> GradientEquations:
    """The equations of one convolution.

    Args:
        kind: With one group.
        size: Height and width of its input.
        weight_gradient: As captured, in the type it was sent in.
        cotangent: Derivative of the loss by its output.
    """
    gradient = weight_gradient.detach().cpu().double()
    length = gradient.norm().clamp_min(1e-300)
    matrix = gradient_matrix(kind, size, cotangent) / length
    given = gradient.permute(0, 2, 3, 1).reshape(matrix.shape[1], -1) / length
    return GradientEquations(kind, matrix, given, rounding(weight_gradient))


def normal_equations(equations: Sequence[GradientEquations]) -> tuple[Tensor, Tensor]:
    """The normal matrix over places, and the right side for each channel."""
    matrix = torch.stack([one.matrix @ one.matrix.T for one in equations]).sum(dim=0)
    right = torch.stack([one.matrix @ one.given for one in equations]).sum(dim=0)
    return matrix, right


def solve(equations: Sequence[GradientEquations]) -> Solution | None:
    """The least-squares solution by gradients alone; None where they do not determine it.

    The covariance of the solution is that of the noise times the inverse normal matrix, and what is left of the right
    sides shows the part of the noise that the unknowns did not take up.
    """
    matrix, right = normal_equations(equations)
    places, rows = len(matrix), sum(one.matrix.shape[1] for one in equations)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal()
    if int(failed) or not bool(pivots.min() > _SINGULAR**0.5 * pivots.max()):
        return None
    values = torch.cholesky_solve(right, factor)
    # Once more for what rounding left: the condition of the normal matrix is that of the equations squared.
    values = values + torch.cholesky_solve(right - matrix @ values, factor)
    left = torch.cat([one.given - one.matrix.T @ values for one in equations])
    given = torch.cat([one.given for one in equations])
    misfit = float(left.norm() / given.norm())
    least = max(one.rounding for one in equations) * float(given.square().mean().sqrt())
    noise = left.square().mean(dim=0).sqrt().clamp_min(least)
    variance = torch.cholesky_inverse(factor).diagonal().clamp_min(0) * rows / max(rows - places, 1)
    return Solution(values, misfit, variance.sqrt()[:, None] * noise)

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
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..geometry import gradient_matrix
from ..kinds import Convolution
from ..layers import rounding
from .weighted_equations import operations_weighted, solve_weighted

# How much longer than the list of unknowns the list of equations must be before a solution is tried.
OVERDETERMINED = 1.02
# Entries (400 MB in float64), and unknowns of each channel.
LARGEST_MATRIX, MOST_PLACES = 50_000_000, 4096
# A normal matrix with such a ratio between its pivots determines nothing.
_SINGULAR = 1e-12
# Output channels whose equations are off by so many times the median are left out, where one is off by much more; not
# more than this share of them, and in so many rounds at most.
_FAR, _CLEARLY, _MOST_LEFT_OUT, _ROUNDS = 3.0, 6.0, 0.5, 12
# And in so many with each entry counted by its deviation.
_WEIGHED = 2
# Nothing is looked for where no more is left than so many roundings of the gradient.
_SETTLED = 16.0


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
    deviation: Tensor | None = None
    """Of the right side's entries from their rounding, where that differs from entry to entry."""

    @property
    def outputs(self) -> int:
        """How many output channels there are; each has as many equations."""
        return self.matrix.shape[1] // (self.kind.kernel[0] * self.kind.kernel[1])

    def of_outputs(self, chosen: Bool[Tensor, " output"]) -> GradientEquations:
        """Those of some output channels alone."""
        if bool(chosen.all()):
            return self
        rows = chosen.repeat_interleave(self.matrix.shape[1] // len(chosen))
        deviation = None if self.deviation is None else self.deviation[rows]
        return replace(self, matrix=self.matrix[:, rows], given=self.given[rows], deviation=deviation)


@dataclass(frozen=True)
class Solution:
    """Of all equations together."""

    values: Tensor
    """``(place, channel)``."""
    misfit: float
    """What it leaves of the right sides, relative."""
    deviation: Tensor
    """``(place, channel)``: of the error, for what is left."""
    kept: tuple[Bool[Tensor, " _"], ...]
    """Of each convolution's output channels those whose equations it rests on."""

    @property
    def left_out(self) -> int:
        """How many output channels were contradicted by all others."""
        return sum(int((~one).sum()) for one in self.kept)


def affordable(kind: Convolution, places: int, outputs: int) -> bool:
    """Whether the matrix of these equations fits into memory, and the convolution is of a form that has it."""
    return kind.groups == 1 and places <= most_places(kind, outputs)


def most_places(kind: Convolution, outputs: int) -> int:
    """Of so many the equations of one convolution fit into memory."""
    return min(MOST_PLACES, LARGEST_MATRIX // (outputs * kind.kernel[0] * kind.kernel[1]))


def operations_of(places: int, rows: int, channels: int) -> float:
    """Of one solution, to within a factor of two: the normal matrix, its factor, and what is left."""
    return 2.0 * places**2 * rows + places**3 + 6.0 * places * rows * channels


def operations_weighed(places: int, rows: int, channels: int) -> float:
    """Of what is made of one solution where each entry counts by its deviation, in all rounds."""
    return _WEIGHED * operations_weighted(places, rows, channels)


def gradient_equations(
    kind: Convolution,
    size: tuple[int, int],
    weight_gradient: Tensor,
    cotangent: Tensor,
    deviation: Tensor | None = None,
) -> GradientEquations:
    """The equations of one convolution.

    Args:
        kind: With one group.
        size: Height and width of its input.
        weight_gradient: As captured, in the type it was sent in.
        cotangent: Derivative of the loss by its output.
        deviation: Of the gradient's entries; None where all of them are known as well.
    """
    gradient = weight_gradient.detach().cpu().double()
    length = gradient.norm().clamp_min(1e-300)
    matrix = gradient_matrix(kind, size, cotangent) / length

    def rows(values: Tensor) -> Tensor:
        return values.permute(0, 2, 3, 1).reshape(matrix.shape[1], -1) / length

    given, spread = rows(gradient), None if deviation is None else rows(deviation.detach().cpu().double())
    return GradientEquations(kind, matrix, given, rounding(weight_gradient), spread)


def normal_equations(equations: Sequence[GradientEquations]) -> tuple[Tensor, Tensor]:
    """The normal matrix over places, and the right side for each channel."""
    matrix = torch.stack([one.matrix @ one.matrix.T for one in equations]).sum(dim=0)
    right = torch.stack([one.matrix @ one.given for one in equations]).sum(dim=0)
    return matrix, right


def solve(equations: Sequence[GradientEquations]) -> Solution | None:
    """The least-squares solution by gradients alone; None where they do not determine it.

    Where entries are not all known as well, each counts by its own deviation in the end.

    One unit on the wrong side of a rectifier spoils all equations of its channel. Where some channels are off by much
    more than the others, they are left out and the rest is solved again, until no other ones are.

    The covariance of the solution is that of the noise times the inverse normal matrix, and what is left of the right
    sides shows the part of the noise that the unknowns did not take up.
    """
    found = _alike(equations)
    return found if found is None else _weighed(equations, found)


def _weighed(equations: Sequence[GradientEquations], found: Solution) -> Solution:
    """A solution whose entries counted alike, with each counted by its deviation, where all of these are known."""
    deviations, kept = [one.deviation for one in equations], found.kept
    for _ in range(_WEIGHED if all(one is not None for one in deviations) else 0):
        pairs = [one.of_outputs(which) for one, which in _pairs(equations, kept)]
        matrix, given = torch.cat([one.matrix for one in pairs], dim=1).T, torch.cat([one.given for one in pairs])
        weighed = solve_weighted(
            matrix, given, torch.cat([one.deviation for one in pairs if one.deviation is not None])
        )
        if weighed is None or not float(weighed.deviation.norm()) < float(found.deviation.norm()):
            break
        # What is said to be kept is what this solution rests on; the next round's is its own.
        found = replace(found, values=weighed.values, misfit=weighed.misfit, deviation=weighed.deviation, kept=kept)
        after = _still(pairs, kept, weighed.left)
        if all(map(torch.equal, kept, after)):
            break
        kept = after
    return found


def _still(
    pairs: Sequence[GradientEquations], kept: Sequence[Tensor], left: Float[Tensor, " equation"]
) -> tuple[Tensor, ...]:
    """Of the channels that a weighed solution rests on those that it does not contradict."""
    found = list[Tensor]()
    for one, which in zip(pairs, kept, strict=True):
        own, left = left[: len(one.given)], left[len(one.given) :]
        size = own.reshape(one.outputs, -1).norm(dim=1)
        still = which.clone()
        still[which] = ~deviant(size, torch.ones_like(size))
        found.append(still if float((~still).double().mean()) <= _MOST_LEFT_OUT else which)
    return tuple(found)


def _alike(equations: Sequence[GradientEquations]) -> Solution | None:
    matrix, right = normal_equations(equations)
    everything = tuple(torch.ones(one.outputs, dtype=torch.bool) for one in equations)
    first = found = _least_squares(equations, matrix, right, everything)
    if first is not None and first.misfit <= _SETTLED * max(one.rounding for one in equations):
        return first
    for _ in range(_ROUNDS):
        if found is None:
            return first
        kept = _agreeing(equations, found)
        if all(map(torch.equal, kept, found.kept)):
            return found
        rows = sum(int(chosen.sum()) * one.matrix.shape[1] // one.outputs for one, chosen in _pairs(equations, kept))
        if rows < OVERDETERMINED * len(matrix):
            return first
        spoilt = [one.of_outputs(~chosen) for one, chosen in _pairs(equations, kept) if not bool(chosen.all())]
        less = normal_equations(spoilt) if spoilt else (torch.zeros_like(matrix), torch.zeros_like(right))
        found = _least_squares(equations, matrix - less[0], right - less[1], kept)
    return first


def _pairs(
    equations: Sequence[GradientEquations], kept: Sequence[Tensor]
) -> Sequence[tuple[GradientEquations, Tensor]]:
    return list(zip(equations, kept, strict=True))


def _agreeing(equations: Sequence[GradientEquations], found: Solution) -> tuple[Tensor, ...]:
    """The output channels whose equations a solution obeys about as well as it obeys most."""
    kept = []
    for one in equations:
        left = (one.given - one.matrix.T @ found.values).reshape(one.outputs, -1).norm(dim=1)
        off = deviant(left, one.given.reshape(one.outputs, -1).norm(dim=1))
        kept.append(~off if float(off.double().mean()) <= _MOST_LEFT_OUT else torch.ones_like(off))
    return tuple(kept)


def deviant(left: Float[Tensor, " output"], size: Float[Tensor, " output"]) -> Bool[Tensor, " output"]:
    """The channels of which a solution leaves clearly more than of most; none where the worst does not stand out.

    Args:
        left: Length of what is left of each channel's gradient.
        size: Length of that gradient.
    """
    live = size > 0
    if not bool(live.any()):
        return torch.zeros_like(live)
    share = torch.where(live, left / size.maximum(size[live].median()), 0.0)
    usual = share[live].median()
    off = share > _FAR * usual
    return off if bool(share.max() > _CLEARLY * usual) else torch.zeros_like(off)


def _least_squares(
    equations: Sequence[GradientEquations], matrix: Tensor, right: Tensor, kept: tuple[Tensor, ...]
) -> Solution | None:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal()
    if int(failed) or not bool(pivots.min() > _SINGULAR**0.5 * pivots.max()):
        return None
    values = torch.cholesky_solve(right, factor)
    # Once more for what rounding left: the condition of the normal matrix is that of the equations squared.
    values = values + torch.cholesky_solve(right - matrix @ values, factor)
    chosen = [one.of_outputs(which) for one, which in _pairs(equations, kept)]
    left = torch.cat([one.given - one.matrix.T @ values for one in chosen])
    given = torch.cat([one.given for one in chosen])
    places, rows = len(matrix), len(given)
    misfit = float(left.norm() / given.norm())
    least = max(one.rounding for one in equations) * float(given.square().mean().sqrt())
    noise = left.square().mean(dim=0).sqrt().clamp_min(least)
    variance = torch.cholesky_inverse(factor).diagonal().clamp_min(0) * rows / max(rows - places, 1)
    return Solution(values, misfit, variance.sqrt()[:, None] * noise, kept)

"""The input of a segment together with the units of its rectifiers that are in doubt, each a number between 0 and 1.

With soft rectifiers (`annealed`) the input is right to a few hundredths, and thousands of units are within such an
error of zero. Set to one side or the other, as least squares have it (see `fitted_units`), hundreds of them come out
wrong, and each spoils a channel's gradient more than the input's own error does. With shares between shut and open all
that is told is smooth in the input and the shares together, and exact at the truth: outputs and gradients are linear in
the shares for a given input, and in the input for given shares. Levenberg-Marquardt over both; units that the new input
has moved out of doubt are set, those that are left keep their shares, until few are: `settled` sets these. At the end
each unit in between is on the side of the value in front of it, since a share is only as good as what hangs on it.

Units of the segment's ends, whose outputs are known, are in doubt too where these are next to nothing: a single one on
the wrong side leaves an error of 2e-3 of an input of 65,000 numbers, with every other unit right.

Nothing here says how good the result is: `settled` holds it against gradients that were not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .fitted_units import fronts_of, in_doubt, parts_like
from .linearised import Linearised, Precondition, levenberg_marquardt
from .segment import Rectify, Segment
from .segment_preconditioner import by_places, places_matrix

# Rounds, each with units in doubt of its own; steps of a round, and conjugate gradients in each.
_ROUNDS, _STEPS, _EACH = 8, 1, 170
# Damping, as a share of the mean curvature, and where conjugate gradients end: directions that hardly count are what is
# left after the first round.
_DAMPING, _SETTLED = 1e-5, 1e-3
# What a share of 1 is, against the input's numbers.
_SCALE = 0.3
# Errors of values in between, as a share of their size: at first, and against what is left of the equations, which
# are that much smaller; a unit below so many of them is in doubt.
_FIRST, _AMPLIFIED, _DOUBTFUL = 2.5e-2, 2.5, 4.0
# Nothing is gained where a round leaves more than that of what was left, and nothing is left below that.
_FALLS, _ENOUGH = 0.97, 1e-5
# Against outputs and gradients: sums over a channel, and shares beyond a bound. (To want each share on the side of the
# value in front of it as well makes it slower.)
_SUMS, _BEYOND = 0.3, 0.02
_MIDDLE = 0.5
# What is told holds shares at least by that much of what it holds the input by.
_LEAST_HELD = 1e-4

ITERATIONS = _ROUNDS * _STEPS * _EACH
"""Of conjugate gradients at most, each with two evaluations."""


def fractional_units(segment: Segment, start: Tensor) -> tuple[Segment, Tensor, float]:
    """The segment with the units that its ends turn out to have, its input, and the error of values in between.

    Args:
        segment: With the equations.
        start: Its input, up to a few hundredths.
    """
    found, error, left = start.clamp_min(0), _FIRST, float("inf")
    shares: Tensor | None = None
    opened = segment.ends
    for _ in range(_ROUNDS):
        units = _units(segment, found, shares, error)
        begun = units.point(found)
        precondition = units.preconditioner(begun)
        point = levenberg_marquardt(units.residual, begun, _STEPS, _EACH, _DAMPING, _SETTLED, precondition)
        left, before = float(units.residual(point).detach().norm()), left
        if not left < before:
            break
        entering, shares = units.taken(point)
        found = entering.clamp_min(0)
        error = min(error, _AMPLIFIED * left)
        ends = zip(segment.ends, parts_like(shares, units.doubtful), strict=False)
        opened = tuple(replace(end, is_open=part > _MIDDLE) for end, part in ends)
        if left < _ENOUGH or left > _FALLS * before:
            break
    return replace(segment, ends=opened), found, error


@dataclass(frozen=True)
class _Units:
    """Of the segment's ends, then of the rectifiers in between, one after another."""

    segment: Segment
    shares: Tensor
    """Of all units."""
    doubtful: Sequence[Tensor]
    """Which are in doubt; the others are shut or open."""
    length: float
    """Of the ends' outputs."""

    @cached_property
    def chosen(self) -> Tensor:
        """Places of those that are in doubt, among all."""
        return _joined(self.doubtful).nonzero()[:, 0]

    def point(self, entering: Tensor) -> Tensor:
        """Input and shares as one vector."""
        return torch.cat([entering.flatten(), self.shares[self.chosen] / _SCALE])

    def taken(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Input and the shares of all units, within their bounds."""
        entering, own = self._split(point.detach())
        return entering, self.shares.index_copy(0, self.chosen, own.clamp(0, 1))

    def _split(self, point: Tensor) -> tuple[Tensor, Tensor]:
        entering, own = torch.split(point, [len(point) - len(self.chosen), len(self.chosen)])
        return entering.reshape(self.segment.shape), own * _SCALE

    def _opened(self, own: Tensor) -> tuple[list[Tensor], Rectify]:
        """The shares of the ends' units, and what rectifiers in between make of values, with these shares in doubt."""
        parts = parts_like(self.shares.index_copy(0, self.chosen, own), self.doubtful)
        count = len(self.segment.ends)
        middle = dict(zip(self.segment.rectifiers, parts[count:], strict=True))
        return parts[:count], lambda name, value: value * middle[name]

    def preconditioner(self, point: Tensor) -> Callable[[Linearised], Precondition] | None:
        """For input and shares apart; None where the input has none."""
        entering, own = self._split(point)
        ends, rectify = self._opened(own)
        matrix = places_matrix(self.segment, entering, rectify, ends)
        if matrix is None:
            return None
        inputs = torch.arange(len(point)) < entering.numel()

        def preconditioner(near: Linearised) -> Precondition:
            probe = torch.randn(point.shape, generator=torch.Generator().manual_seed(0))
            held = near.curvature(probe * inputs)
            of_shares = max(near.curvature(probe * ~inputs), _LEAST_HELD * held)
            of_input = by_places(matrix, held, self.segment.shape)
            size = entering.numel()
            return lambda values: torch.cat([of_input(values[:size]), values[size:] / of_shares])

        return preconditioner

    def residual(self, point: Tensor) -> Tensor:
        """What is left of all that is told."""
        segment = self.segment
        entering, own = self._split(point)
        ends, rectify = self._opened(own)
        values, gradients = segment.told(entering, rectify, ends)
        left = [(-entering).clamp_min(0) / self.length]
        left.append((own - own.clamp(0, 1)) * (_BEYOND / max(len(self.chosen), 1) ** 0.5))
        for end, value, doubt in zip(segment.ends, values, self.doubtful, strict=False):
            left.append(torch.where(end.is_open & ~doubt, value - end.target, value.clamp_min(0)) / self.length)
        for one, gradient in zip(segment.given, gradients, strict=True):
            if one.gradient.dim() > 1 or one.role == "bias":  # those of batch norms' weights show what is wrong
                weight = _SUMS if one.gradient.dim() == 1 else 1.0
                left.append((gradient - one.gradient) * (weight / one.gradient.norm()))
        return _joined(left)


def _units(segment: Segment, entering: Tensor, shares: Tensor | None, error: float) -> _Units:
    """Those that are in doubt where values in between have this error; they keep the shares that they had."""
    fronts = fronts_of(segment, entering, lambda _, value: value.clamp_min(0))
    doubtful = in_doubt(segment, fronts, _DOUBTFUL * error)
    opened = [end.is_open.float() for end in segment.ends]
    if shares is not None:
        # A unit of an end that turned out to be on the other side stays in doubt: out of it, it would be set back.
        sides = zip(segment.ends, parts_like(shares, doubtful), strict=False)
        other = [(part > _MIDDLE) ^ end.is_open for end, part in sides]
        doubtful = [*map(torch.logical_or, doubtful, other), *doubtful[len(other) :]]
    middle = fronts[len(opened) :]
    begun = opened + [(_MIDDLE + one / (2 * error * one.square().mean().sqrt())).clamp(0, 1) for one in middle]
    kept = _joined(begun) if shares is None else shares
    hard = _joined(opened + [(one > 0).float() for one in middle])
    length = float(torch.stack([end.target.square().sum() for end in segment.ends]).sum().sqrt())
    return _Units(segment, torch.where(_joined(doubtful), kept, hard), doubtful, length)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in parts])

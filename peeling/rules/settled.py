"""The input of a segment to the last digits, from one that is right to within a few units of its rectifiers.

1. A unit near zero may be on the wrong side, in between and at the segment's ends, whose outputs are known no better
   than to some error. The gradients in between show which (see `fitted_units`).
2. With units that are given, all that is told is linear in the input. It comes out of a rectifier, so that no entry is
   below zero: entries that would be are zero, and are let go where that leaves less (Lawson & Hanson 1974). A channel
   whose gradient fits worse than the others has a unit that is still wrong, and counts for less.
3. Both in turn, until nothing gets better.
4. At the end each side counts by how well it is known: outputs that were themselves derived are a hundred times as
   uncertain as gradients, and a unit whose output is as small as their error would come out shut.

The gradients of batch norms' weights are not used, and show what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..conjugate_gradients import conjugate_gradients
from ..layers import rounding, worst
from .fitted_units import ITERATIONS as FITTING
from .fitted_units import fitted_units
from .linearised import Linearised
from .segment import Segment

# Rounds of units and equations in turn, and of equations alone; conjugate gradients in each.
ROUNDS, _LAST, _ITERATIONS, _LAST_ITERATIONS = 6, 3, 80, 200
# The error of a value, as a share of its size, against what is left of the gradients.
_AMPLIFIED = 2.0
# The error of values at first, at least.
_FIRST = 1e-2
# A channel that is off by so many times what channels usually are counts for half.
_HALF = 3.0
_DAMPING, _SETTLED = 1e-5, 1e-5
# What known outputs count at the end, at least, where gradients are known better.
_LEAST_COUNT = 1e-2
# What a round of equations must leave of the misfit for another one.
_FALLS = 0.8
# A round that makes the misfit larger than that goes astray.
_WORSE = 1.5
# Entries at zero that show errors, at least; the median of errors on one side, in deviations; and the least share of
# what deviations were estimated to be.
_MANY, _MEDIAN, _LEAST_SHOWN = 100, 0.6745, 0.15
# How far the second solution begins from the first, in misfits.
_APART = 10.0


def most_iterations(rounds: int = ROUNDS) -> int:
    """Of conjugate gradients, each with two evaluations.

    Args:
        rounds: Of units and equations in turn, at most.
    """
    return rounds * (2 * _ITERATIONS + FITTING) + (_LAST + 1) * _LAST_ITERATIONS


@dataclass(frozen=True)
class Settled:
    """The input and how far it can be trusted."""

    values: Tensor
    deviation: Tensor
    misfit: float
    """What it leaves of the gradients that it was found by, relative, where that is most."""
    contradiction: float
    """What it leaves of those that it was not found by."""
    opened: Mapping[str, Tensor]
    """The units of the segment's ends that it was found with, by rectifier."""
    iterations: int
    """Of conjugate gradients, at most, in the rounds that were made."""

    @property
    def error(self) -> float:
        """The largest of what says how far it is off, relative."""
        stated = (self.deviation.flatten(1).norm(dim=1) / self.values.flatten(1).norm(dim=1).clamp_min(1e-300)).max()
        return worst(float(stated), self.misfit, self.contradiction)


def settled(segment: Segment, start: Tensor, error: float = _FIRST, rounds: int = ROUNDS) -> Settled:
    """The input, from one that is nearly right.

    Args:
        segment: With the equations.
        start: Up to a few hundredths.
        error: Of values in between at the start, as a share of their size.
        rounds: Of units and equations in turn, at most.
    """
    system, found, masks = _System(segment), start, _sides(segment, start)
    misfit, made = system.misfits(found, masks), _LAST_ITERATIONS
    for _ in range(rounds):
        made += 2 * _ITERATIONS + FITTING
        last, before = misfit, (system, found, masks, misfit)
        segment, masks = fitted_units(segment, found, _sides(segment, found), max(error, _AMPLIFIED * misfit))
        same = _same(segment, masks, before[0].segment, before[2])
        system, error = _System(segment), 0.0
        small = _AMPLIFIED * misfit * float(found.square().mean().sqrt())
        found = system.solved(found, masks, found > small)
        found = system.solved(found, masks, None)
        misfit = system.misfits(found, masks)
        if misfit > _WORSE * last:
            system, found, masks, misfit = before
            break
        if same and not misfit <= _FALLS * last:
            break
    if misfit < system.error:
        system.count = max(_LEAST_COUNT, system.rounding / system.error)
    for _ in range(_LAST):
        made += _LAST_ITERATIONS
        trial = system.solved(found, masks, None, _LAST_ITERATIONS)
        last, misfit = misfit, system.misfits(trial, masks)
        if not misfit < last:
            misfit = last
            break
        found = trial
        if not misfit <= _FALLS * last:
            break
    return _judged(system, found, masks, misfit, made)


def _same(one: Segment, units: Mapping[str, Tensor], other: Segment, others: Mapping[str, Tensor]) -> bool:
    """Whether all units are on the same side, those of the ends too."""
    ends = zip(one.ends, other.ends, strict=True)
    return all(torch.equal(units[name], others[name]) for name in units) and all(
        torch.equal(end.is_open, theirs.is_open) for end, theirs in ends
    )


def _judged(system: _System, found: Tensor, masks: Mapping[str, Tensor], misfit: float, made: int) -> Settled:
    """With a second solution, from elsewhere and with every right side off by what was left of it."""
    size = found.flatten(1).square().mean(dim=1).sqrt()[:, None, None, None]
    random = torch.Generator().manual_seed(1)
    moved = found + torch.randn(found.shape, generator=random) * _APART * misfit * size * (found > 0)
    other = system.solved(moved, masks, found > 0, _LAST_ITERATIONS, noise=random)
    local = (other - found).square().mean(dim=1, keepdim=True).sqrt()
    usual = (other - found).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    deviation = stated_deviation(found, local, usual)
    used, unused = system.left(found, masks)
    opened = {end.rectifier: end.is_open for end in system.segment.ends}
    left = (max(used, default=0.0), max(unused, default=0.0))
    return Settled(found.double(), deviation.double(), *left, opened, made)


def stated_deviation(found: Tensor, local: Tensor, usual: Tensor) -> Tensor:
    """Of each entry: no less than is usual for the image, and by as much smaller as shut entries show.

    Args:
        found: The input, ``(image, channel, row, column)``, zero where it was shut.
        local: By how much two solutions differ, ``(image, 1, row, column)``.
        usual: The same over the whole image, ``(image, 1, 1, 1)``.
    """
    # Shut entries are held against their own places: an image's good places say nothing of its bad ones.
    share = error_share(found, local.expand_as(found))
    return local.maximum(usual).expand_as(found) * share


def error_share(found: Tensor, deviation: Tensor) -> float:
    """What deviations are, as a share of the estimated ones, by entries that were shut: their errors are as often above
    zero as they would be below it, where they were set to zero. Of the smallest entries as many as are zero are such
    errors, or values, and then errors are smaller still."""
    zeros, above = int((found <= 0).sum()), found[found > 0]
    if zeros < _MANY or zeros > above.numel():
        return 1.0
    largest = float(above.kthvalue(zeros // 2).values) / _MEDIAN
    return min(1.0, max(_LEAST_SHOWN, largest / float(deviation.median())))


def _sides(segment: Segment, entering: Tensor) -> dict[str, Tensor]:
    """Open units, by the values in front."""
    values = segment.run(entering, lambda _, value: value.clamp_min(0))
    return {name: values[segment.graph.by_name[name].inputs[0]] > 0 for name in segment.rectifiers}


class _System:
    """What is told of the input, linear where the units are given; scaled so that each right side has length 1."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.length = float(torch.stack([end.target.square().sum() for end in segment.ends]).sum().sqrt())
        off = torch.stack([(end.deviation * end.is_open).square().sum() for end in segment.ends]).sum().sqrt()
        self.error = float(off) / self.length
        """Of the known outputs, relative, as stated."""
        self.rounding = max((rounding(one.gradient) for one in segment.given), default=0.0)
        """Of gradients."""
        self.count = 1.0
        """What known outputs count, against gradients."""
        # Sums over units are for the units; batch norms' weights are kept to hold the result against.
        self.used = [position for position, one in enumerate(segment.given) if one.gradient.dim() > 1]
        self.kept = [
            position for position, one in enumerate(segment.given) if one.role == "weight" and one.gradient.dim() == 1
        ]

    def told(self, entering: Tensor, masks: Mapping[str, Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return self.segment.told(entering, lambda name, value: value * masks[name])

    def left(self, entering: Tensor, masks: Mapping[str, Tensor]) -> tuple[list[float], list[float]]:
        """Of each gradient that is used, and of each other one, relative."""
        _, gradients = self.told(entering, masks)
        given = self.segment.given
        off = [
            float((found.detach() - one.gradient).norm() / one.gradient.norm())
            for found, one in zip(gradients, given, strict=True)
        ]
        return [off[position] for position in self.used], [off[position] for position in self.kept]

    def channels(self, entering: Tensor, masks: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """What is left of each output channel of a gradient, as a share of what channels have."""
        _, gradients = self.told(entering, masks)
        found = {}
        for position in self.used:
            given = self.segment.given[position].gradient.flatten(1)
            left = (gradients[position].detach().flatten(1) - given).norm(dim=1)
            found[position] = left / given.norm(dim=1).maximum(0.1 * given.norm() / len(given) ** 0.5)
        return found

    def misfits(self, entering: Tensor, masks: Mapping[str, Tensor]) -> float:
        """What is left of a usual channel."""
        return max((float(one.median()) for one in self.channels(entering, masks).values()), default=0.0)

    def solved(
        self,
        start: Tensor,
        masks: Mapping[str, Tensor],
        free: Tensor | None,
        iterations: int = _ITERATIONS,
        noise: torch.Generator | None = None,
    ) -> Tensor:
        """The input with these units.

        Args:
            start: From which conjugate gradients go.
            masks: The units.
            free: Entries that are not zero; None for those that are above zero, or would be.
            iterations: Of conjugate gradients.
            noise: With right sides off by their errors.
        """
        start = start.clamp_min(0) if free is None else start * free
        weights = {}
        for position, off in self.channels(start, masks).items():
            usual = off.median().clamp_min(1e-7)
            shape = (-1, *(1 for _ in self.segment.given[position].gradient.shape[1:]))
            weights[position] = (1 / (1 + (off / (_HALF * usual)).square())).reshape(shape)
        values, gradients = self.told(start, masks)
        gradients = [one.detach() for one in gradients]
        heard = [end.is_open | (value > 0) for end, value in zip(self.segment.ends, values, strict=True)]

        def scaled(values: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
            parts = [mask * value * (self.count / self.length) for mask, value in zip(heard, values, strict=True)]
            for position in self.used:
                one = self.segment.given[position].gradient
                parts.append(weights[position] * gradients[position] / one.norm())
            return torch.cat([part.flatten() for part in parts])

        near = Linearised(lambda entering: scaled(*self.told(entering, masks)), start)
        slope = near.back(self._wanted(scaled, gradients, noise) - near.value)
        if free is None:
            free = (start > 0) | (slope > 0)
        allowed, damping = free, _DAMPING / self.length**2
        move = conjugate_gradients(
            lambda move: allowed * (near.normal(move) + damping * move), allowed * slope, iterations, _SETTLED
        ).solution
        return (start + move).clamp_min(0)

    def _wanted(
        self,
        scaled: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
        gradients: Sequence[Tensor],
        noise: torch.Generator | None,
    ) -> Tensor:
        """The right sides."""
        targets, given = [], []
        for end in self.segment.ends:
            off = 0.0 if noise is None else torch.randn(end.target.shape, generator=noise) * end.deviation
            targets.append(end.target + off * end.is_open)
        for one, found in zip(self.segment.given, gradients, strict=True):
            size = float(one.gradient.square().mean().sqrt())
            spread = max(float((found - one.gradient).square().mean().sqrt()), rounding(one.gradient) * size)
            off = 0.0 if noise is None else torch.randn(one.gradient.shape, generator=noise) * spread
            given.append(one.gradient + off)
        return scaled(targets, given)

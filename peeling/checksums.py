"""The sums over images and places that a gradient holds of the cotangent: a check of every unit of a ReLU.

Let c be the cotangent behind a ReLU, m its mask (1 where a unit was open), and x what a layer below it computes channel
by channel. With all sums over images and places of one channel:

- the gradient of a batch norm's shift, and of a convolution's or linear layer's bias, is ``sum c m`` (with c carried on
  to there: times the batch norm's scale, if one lies between);
- the gradient of a batch norm's weight is ``sum c m x`` with its normalised input x, and that of a convolution's weight
  times the weight itself, summed over input channels and kernel, is ``sum c m x`` with its output x without the bias.

c is known for all units, open or not, and so is x wherever m is 1; at a unit near zero x is the number that the ReLU
turns into zero, the same for the whole channel. So all four are sums of known terms over the open units, and a unit on
the wrong side of the ReLU makes the sum differ from the gradient by its term. The first two need no activations and are
used where they exist; the other two tell nothing where that number is zero (no bias and no batch norm).

Where the sum of a channel differs by more than its tolerance, units are switched: sets of them in the order of their
probability, until one explains the difference. Others that explain it and are comparably likely leave their units in
doubt: two whose terms cancel, say. A set that fits by accident becomes likely once many have been tried, and then the
channel is left as it is. The tolerance is that of the numbers' rounding, and of as much noise as the channels with the
smallest differences show.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..capture import sent_type
from .units import Units

# What channels of the lower third differ by, in deviations of a normal distribution, is taken for noise.
_SHARE, _DEVIATIONS = 0.3, 0.385
_FEWEST_CHANNELS = 4
# The tolerance in deviations of that noise, and in roundings of float32 (the client's sum) of each term.
_NOISE, _ROUNDINGS = 5.0, 4.0
# How likely a set may be found by accident, and how many are tried at most.
_ACCIDENT, _MOST_SETS = 0.02, 2000
# A unit whose term is so many tolerances is seen when it is on the wrong side.
_SEEN = 2.0
# Explanations whose odds are less than this share of the best one's are passed over.
_COMPARABLE = 1e-4


@dataclass(frozen=True)
class ChannelSum:
    """One gradient with an entry for each channel, and the terms of which it is the sum."""

    total: Tensor
    """``(channel,)``, as captured."""
    terms: Tensor
    """``(batch, channel, place)``: what each unit adds if it is open."""
    rounding: Tensor
    """``(channel,)``: by how much ``total`` may be off from being stored in its type."""
    needs_activations: bool = False
    """The terms are products with activations, which are less exact than cotangents."""

    def difference(self, is_open: Tensor) -> Tensor:
        """What is missing in each channel."""
        return self.total - (self.terms * is_open.reshape(self.terms.shape)).sum(dim=(0, 2))

    def tolerance(self, is_open: Tensor) -> Tensor:
        """The largest difference that means nothing."""
        difference, size = self.difference(is_open).abs(), self.terms.square().sum(dim=(0, 2)).sqrt()
        added = (self.terms * is_open.reshape(self.terms.shape)).abs().sum(dim=(0, 2))
        least = self.rounding + _ROUNDINGS * torch.finfo(torch.float32).eps * (added + size / added.numel() ** 0.5)
        live = size > 0
        if int(live.sum()) < _FEWEST_CHANNELS:
            return least
        # Noise may be of one size for all channels, or in proportion to what they add up.
        noise = _usual(difference[live]).maximum(_usual(difference[live] / size[live]) * size)
        return least + _NOISE * noise


@dataclass(frozen=True)
class Settled:
    """Units after the checks, and what is left: the length of the error of the cotangent in front of the ReLU."""

    units: Units
    error: float
    """Relative to the cotangent; ``inf`` where that is zero."""


def stored(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """A captured vector in float64, and by how much each entry may be off from the type in which it was sent."""
    kind, values = torch.finfo(sent_type(gradient)), gradient.detach().cpu().double()
    return values, kind.eps * (values.abs() + kind.smallest_normal)


def settle(sums: Sequence[ChannelSum], unmasked: Tensor, units: Units) -> Settled:
    """Switch the units that the sums show to be wrong, and say what they leave open.

    Args:
        sums: Of channels below the ReLU, the most exact one first; their terms are of the same units in the same order.
        unmasked: The cotangent if every unit were open, of any shape with the batch in front.
        units: Those of the ReLU, of that shape.
    """
    for one in sums:
        units = _mend(one, units)
    return Settled(units, error_shown(sums, unmasked, units))


def error_shown(sums: Sequence[ChannelSum], unmasked: Tensor, units: Units) -> float:
    """Relative error of the masked cotangent: what the sums show, and what is expected of units that they cannot see.

    A difference within its tolerance is spread over the channel, as rounding is; a larger one is one unit's.
    """
    size = float((unmasked * units.is_open).norm())
    if not size > 0:
        return float("inf")
    shown = [_error_length(one, unmasked.reshape(one.terms.shape), units) for one in sums]
    return (max(shown, default=0.0) ** 2 + units.expected_error(unmasked) ** 2) ** 0.5 / size


def _error_length(one: ChannelSum, unmasked: Tensor, units: Units) -> float:
    """Length of the error of the cotangent that a sum's differences show."""
    difference, tolerance = one.difference(units.is_open).abs(), one.tolerance(units.is_open)
    if not one.needs_activations:
        spread = difference / (one.terms.numel() / len(difference)) ** 0.5
        return float(torch.where(difference > tolerance, difference, spread).norm())
    # Those of activations do differ for other reasons: only where a unit in doubt would be seen they tell of units.
    doubtful = units.doubtful.reshape(one.terms.shape)
    terms, cotangent = ((tensor.abs() * doubtful).amax(dim=(0, 2)) for tensor in (one.terms, unmasked))
    telling = (difference > tolerance) & (terms > _SEEN * tolerance)
    return float(torch.where(telling, difference * cotangent / terms.clamp_min(1e-300), 0.0).norm())


def _usual(differences: Tensor) -> Tensor:
    """The deviation of the noise in them, if no more than two thirds differ for another reason."""
    return differences.quantile(_SHARE) / _DEVIATIONS


def _mend(one: ChannelSum, units: Units) -> Units:
    """Explain channel by channel; units of channels that then agree are confirmed, as far as the sum sees them."""
    shape = units.is_open.shape
    inside = units.reshaped(*one.terms.shape[1:])
    is_open, wrong = inside.is_open.clone(), inside.wrong.clone()
    tolerance, difference = one.tolerance(is_open), one.difference(is_open)
    seen = one.terms.abs() > _SEEN * tolerance[:, None]
    free = inside.doubtful & (wrong > 0) & seen
    changes = torch.where(is_open, -one.terms, one.terms)
    unlikely = torch.where(free, wrong, 0.0).amax(dim=(0, 2)) < _COMPARABLE
    for channel in ((difference.abs() > tolerance) | ~unlikely).nonzero()[:, 0].tolist():
        image, place = free[:, channel].nonzero(as_tuple=True)
        odds = wrong[image, channel, place].logit()
        found = _explanations(
            float(difference[channel]), float(tolerance[channel]), changes[image, channel, place], odds
        )
        if found:
            best = found[0].chosen
            is_open[image[best], channel, place[best]] ^= True
            wrong[image, channel, place] = _left_open(found, len(image)).to(wrong)
    unmet = one.difference(is_open).abs() > tolerance
    confirmed = seen & ~free & ~unmet[:, None]
    return replace(inside, is_open=is_open, wrong=torch.where(confirmed, 0.0, wrong)).reshaped(*shape[1:])


@dataclass(frozen=True)
class _Explanation:
    """A set of units to be switched, and minus the logarithm of its odds against none."""

    chosen: list[int]
    cost: float


def _explanations(difference: float, tolerance: float, changes: Tensor, odds: Tensor) -> list[_Explanation]:
    """The likeliest set of units whose changes add up to the difference, and all that are comparably likely.

    None where there is none, or where chance would give one.

    Args:
        difference: What is to be explained.
        tolerance: How exactly.
        changes: What switching each unit adds.
        odds: Logarithm of the odds that it is wrong, not above zero.
    """
    found = [_Explanation([], 0.0)] if abs(difference) <= tolerance else []
    if not len(changes):
        return found
    scale = max(abs(difference), float(changes.square().mean().sqrt()))
    most = _ACCIDENT * scale / tolerance
    order = odds.argsort(descending=True)[:_MOST_SETS]
    costs, steps, names = (-odds[order]).clamp_min(0).tolist(), changes[order].tolist(), order.tolist()
    # Each set, sorted, is reached once: from the one without its last unit, or with the unit before in its place.
    heap: list[tuple[float, tuple[int, ...], float]] = [(costs[0], (0,), steps[0])]
    for tried in range(1, _MOST_SETS + 1):
        if not heap or (not found and tried > most):
            break
        cost, chosen, total = heapq.heappop(heap)
        if found and cost > found[0].cost - math.log(_COMPARABLE):
            break
        if abs(total - difference) <= tolerance:
            found.append(_Explanation([names[unit] for unit in chosen], cost))
        last = chosen[-1]
        if last + 1 < len(steps):
            more, following = costs[last + 1], steps[last + 1]
            heapq.heappush(heap, (cost + more, (*chosen, last + 1), total + following))
            heapq.heappush(heap, (cost - costs[last] + more, (*chosen[:-1], last + 1), total - steps[last] + following))
    return found


def _left_open(found: list[_Explanation], count: int) -> Tensor:
    """The probability that each unit is on another side than the likeliest explanation says, by the others."""
    sides = torch.zeros(len(found), count, dtype=torch.bool)
    for row, one in enumerate(found):
        sides[row, one.chosen] = True
    # Odds are as good as the model of the errors that gave them: they are taken for half as telling.
    weights = (-torch.tensor([one.cost for one in found], dtype=torch.float64) / 2).softmax(dim=0)
    return weights @ (sides != sides[0]).double()

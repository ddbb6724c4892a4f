"""Which units of a segment's rectifiers were open, by all gradients in between at once.

With the segment's input known up to a small error, units far from zero are on the right side. For the others the
gradients are linear in the units, which are numbers between 0 and 1: the gradient of a weight has a row of its own for
each channel, of hundreds of entries, while few units of a channel are in doubt. So least squares within the bounds tell
them apart where a sum over the channel, one number, cannot. Units that hardly matter stay as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..conjugate_gradients import conjugate_gradients
from .linearised import Linearised
from .segment import Rectify, Segment

# Solutions in turn, each without the units that came out beyond a bound; conjugate gradients in each.
_ROUNDS, _EACH = 3, 40
ITERATIONS = _ROUNDS * _EACH
"""Of conjugate gradients at most, each with two evaluations."""
_SETTLED = 1e-3
# Of the mean curvature: what holds units that the gradients do not see.
_DAMPING = 1e-3
# Units below so many errors may be on the wrong side; and what is next to nothing, as a share of a usual output.
_DOUBTFUL, _NOTHING = 8.0, 1e-3
_MIDDLE = 0.5


def fitted_units(
    segment: Segment, entering: Tensor, units: Mapping[str, Tensor], error: float
) -> tuple[Segment, dict[str, Tensor]]:
    """The units that fit the gradients best, of those that are in doubt: those of the ends, and those in between.

    Args:
        segment: With the gradients.
        entering: Its input, nearly right.
        units: Whether each in between is open, by rectifier.
        error: Of values in between, as a share of their size.
    """
    fronts = fronts_of(segment, entering, lambda name, value: value * units[name])
    begun = [*(end.is_open for end in segment.ends), *units.values()]
    chosen = in_doubt(segment, fronts, _DOUBTFUL * error)
    found = _fitted(segment, entering, list(units), begun, torch.cat([one.flatten() for one in chosen]))
    ends = zip(segment.ends, found, strict=False)
    opened = tuple(replace(end, is_open=one) for end, one in ends)
    return replace(segment, ends=opened), dict(zip(units, found[len(opened) :], strict=True))


def fronts_of(segment: Segment, entering: Tensor, rectify: Rectify) -> list[Tensor]:
    """What enters the rectifiers of the segment's ends, then those in between.

    Args:
        segment: Of which.
        entering: Its input.
        rectify: For the rectifiers in between.
    """
    values = segment.run(entering, rectify)
    before = [segment.graph.by_name[name].inputs[0] for name in segment.rectifiers]
    return [values[name] for name in (*(end.before for end in segment.ends), *before)]


def in_doubt(segment: Segment, fronts: Sequence[Tensor], bound: float) -> list[Tensor]:
    """Which units of these rectifiers may be on the other side.

    Args:
        segment: Of which they are.
        fronts: What enters them, those of the ends first.
        bound: What is nearer to zero is in doubt, as a share of each rectifier's usual value.
    """
    chosen = [front.abs() < bound * front.square().mean().sqrt() for front in fronts]
    for position, end in enumerate(segment.ends):
        # Whether a unit was open is in doubt where its known output is next to nothing.
        chosen[position] &= end.target <= _NOTHING * end.target.square().mean().sqrt()
    return chosen


def _fitted(segment: Segment, entering: Tensor, names: list[str], units: list[Tensor], chosen: Tensor) -> list[Tensor]:
    """By least squares over the chosen ones."""
    if not bool(chosen.any()):
        return units
    begun = torch.cat([one.flatten() for one in units]).float()
    # The gradients of batch norms' weights are left to show what is wrong.
    used = [at for at, one in enumerate(segment.given) if one.gradient.dim() > 1 or one.role == "bias"]
    ends = len(segment.ends)

    def left(shares: Tensor) -> Tensor:
        parts = parts_like(shares, units)
        masks = dict(zip(names, parts[ends:], strict=True))
        _, gradients = segment.told(entering, lambda name, value: value * masks[name], parts[:ends])
        off = [(gradients[at] - segment.given[at].gradient) / segment.given[at].gradient.norm() for at in used]
        return torch.cat([one.flatten() for one in off])

    near = Linearised(left, begun)
    slope = near.back(near.value)
    probe = chosen * torch.randn(begun.shape, generator=torch.Generator().manual_seed(0))
    damping = _DAMPING * float(near.forth(probe).square().sum() / probe.square().sum())
    free, move = chosen, torch.zeros_like(begun)
    for _ in range(_ROUNDS):
        held = torch.where(free, 0.0, move)
        right = free * (-slope - near.normal(held))

        def normal(step: Tensor, free: Tensor = free) -> Tensor:
            return free * (near.normal(step) + damping * step)

        move = held + conjugate_gradients(normal, right, _EACH, _SETTLED).solution
        beyond = free & ((begun + move < 0) | (begun + move > 1))
        move = (begun + move).clamp(0, 1) - begun
        if not bool(beyond.any()):
            break
        free = free & ~beyond
    return parts_like(begun + move > _MIDDLE, units)


def parts_like(joined: Tensor, units: Sequence[Tensor]) -> list[Tensor]:
    """One vector as the tensors, one after another, of these forms."""
    parts = torch.split(joined, [one.numel() for one in units])
    return [part.reshape(one.shape) for part, one in zip(parts, units, strict=True)]

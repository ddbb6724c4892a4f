"""The rule that gives a value that its own convolution's gradient is too small for, with all that lies behind it.

Where a block's inner value has more places than its gradient has equations, the block's input is looked for instead:
the block's known output, the gradients of all its convolutions and the units in between determine it together (see
`segment`), although it enters them through a rectifier of unknown units. First with soft rectifiers that grow hard
(`annealed`), then with units that the gradients show (`settled`); where these do not come out, with shares of the units
in doubt, in between and at its ends (`fractional_units`).

Rank: as many known outputs and entries of gradients as the input has; that this is enough the solution must show, by
what it leaves of the gradients, and of those that it was not found by.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ..graph.cost import operations
from ..layers import worst
from ..refusals import Refused, Why
from . import annealed, fractional_units, settled
from .knowledge import Knowledge, Known
from .rule import Derived, Setting
from .segment import Segment, find_segment
from .segment_preconditioner import by_places_operations
from .switched_units import with_switched

RULE = "segment input"

# How much longer than the list of unknowns the list of equations must be.
_OVERDETERMINED = 1.1
# Of one iteration, in runs of the segment: forth and back, each with the gradients of its parameters.
_RUNS = 6
# A solution with a larger error has units on the wrong side.
_CLEAN = 1e-3
# Of units that are set by the gradients, once shares of them have been found.
_FEWEST_ROUNDS = 3


def segment_input(setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
    """The input of the segment in front of what is known."""
    if setting.steps is not None:
        return  # each visit has weights of its own, which are not known yet
    segment = find_segment(setting, known)
    if segment is None or not segment.rectifiers:
        return
    given = [part[end.rectifier] for end in segment.ends for part in (known.arriving, known.units)]
    yield setting.effort.once(RULE, segment.value, given, lambda: _attempt(setting, known, segment))


def _attempt(setting: Setting, known: Knowledge, segment: Segment) -> Derived | Refused:
    value, channels = segment.value, segment.shape[1]
    places = prod(segment.shape) // channels
    entries = sum(int(end.is_open.sum()) for end in segment.ends)
    entries += sum(one.gradient.numel() for one in segment.given)
    equations = int(entries / _OVERDETERMINED) // channels
    if equations < places:
        return Refused(RULE, value, Why.FEW_EQUATIONS, places, equations)
    if not setting.effort.affords(_operations(segment)):
        return Refused(RULE, value, Why.COST, places)
    solution = _solution(setting, segment)
    found = known.solved(Known(solution.values, solution.values >= 0, solution.deviation, RULE))
    checks = {"misfit": solution.misfit, "contradiction": solution.contradiction}
    error = worst(float(found.error.max()), *checks.values())
    if not error <= setting.tolerance:
        return Refused(RULE, value, Why.INEXACT, places, equations, error=error)
    checks |= {"places": places, "equations": equations, "switched": 0.0}
    with_units = known.with_activations(value, found)
    for rectifier, is_open in solution.opened.items():
        switched = is_open ^ known.units[rectifier].is_open
        checks["switched"] += float(switched.sum())
        if bool(switched.any()):
            # The derivative in front of the block rests on them too.
            with_units = with_switched(setting, with_units, rectifier, switched)
    return Derived(RULE, value, with_units, checks, notable=True)


def _solution(setting: Setting, segment: Segment) -> settled.Settled:
    """With units set at once; where that leaves more than they can account for, with shares of units first."""
    effort, runs = setting.effort, _runs(segment)
    start = annealed.annealed(segment)
    found = settled.settled(segment, start)
    effort.give_back(runs * (settled.most_iterations() - found.iterations))
    if found.error <= _CLEAN:
        return found
    shares = (runs + by_places_operations(segment)) * fractional_units.ITERATIONS
    # From shares few rounds are needed: as many as are affordable.
    possible = range(settled.ROUNDS, _FEWEST_ROUNDS - 1, -1)
    rounds = next((one for one in possible if effort.affords(shares + runs * settled.most_iterations(one))), None)
    if rounds is None:
        return found
    opened, nearer, error = fractional_units.fractional_units(segment, start)
    other = settled.settled(opened, nearer, error, rounds)
    effort.give_back(runs * (settled.most_iterations(rounds) - other.iterations))
    return min(found, other, key=lambda one: one.error)


def _operations(segment: Segment) -> float:
    """Of all iterations, units set at once."""
    return _runs(segment) * (annealed.ITERATIONS + settled.most_iterations())


def _runs(segment: Segment) -> float:
    """Operations of one iteration."""
    values = [end.before for end in segment.ends]
    one = operations(segment.graph, values) - operations(segment.graph, [segment.value])
    return one * segment.image_count * _RUNS

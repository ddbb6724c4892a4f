"""Fitting a grid to a time: fewer steps first, then fewer agents, then fewer cells; never without the controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

LEAST_SHARE = 0.25
"""Of the steps that were asked for: below that a result says little, and cells are left out instead."""
_RESERVE = 0.1
"""Share of the time that is kept for what an estimate does not see."""
_ATTACKS = 3
"""In a cell, with the steps of the attack itself: the attack, without the gradient, on other images."""


@dataclass(frozen=True)
class Cost:
    """What one attack takes, measured at the batch size of a cell."""

    overhead: float
    """Seconds before the first step and after the last one."""
    step: float
    """Seconds of one step while as many agents compute as have room."""

    def cell(self, iterations: int, agents: int, lanes: float, full_agents: int) -> float:
        """Seconds of a cell: the attack and its controls.

        Args:
            iterations: Steps of each agent.
            agents: How many there are.
            lanes: How many of them really compute at the same time.
            full_agents: How many there were when ``step`` was measured.
        """
        alone = self.step / max(1.0, full_agents / lanes)
        step = alone * max(1.0, agents / lanes)
        # The last control is one agent with the steps of all.
        return (_ATTACKS + 1) * self.overhead + _ATTACKS * iterations * step + agents * iterations * alone


@dataclass(frozen=True)
class Plan:
    """What is run, and what was given up for the time."""

    iterations: int
    agents: int
    kept: tuple[str, ...]
    """Names of cells, in the order in which they are run."""
    seconds: Mapping[str, float]
    """By cell: the estimate."""
    notes: tuple[str, ...] = ()
    """What was reduced, in sentences."""


def fit(
    names: Sequence[str],
    costs: Mapping[str, Cost],
    iterations: int,
    agents: int,
    at_once: int,
    lanes: float,
    budget: float,
    extra: float = 0.0,
) -> Plan:
    """Fit a grid to a time.

    Args:
        names: Of the cells, the most informative first: the last ones are left out first.
        costs: Of each cell.
        iterations: Asked for.
        agents: Asked for.
        at_once: Cells that run at the same time.
        lanes: Agents of a cell that really compute at the same time.
        budget: Seconds.
        extra: Seconds of work beside the cells.
    """
    usable = budget * (1 - _RESERVE) - extra
    least = max(1, math.ceil(LEAST_SHARE * iterations))

    def seconds(kept: Sequence[str], steps: int, count: int) -> dict[str, float]:
        return {name: costs[name].cell(steps, count, lanes, agents) for name in kept}

    def fits(kept: Sequence[str], steps: int, count: int) -> bool:
        needed = seconds(kept, steps, count).values()
        # Whatever the order, no schedule is shorter than its longest cell.
        return max(sum(needed) / at_once, max(needed, default=0.0)) <= usable

    few = max(1, min(agents, 2))
    for kept in _shorter(names):
        for count in dict.fromkeys((agents, few)):
            steps = _most(lambda steps: fits(kept, steps, count), least, iterations)  # noqa: B023
            if steps is not None:
                notes = _notes(len(names) - len(kept), iterations, steps, agents, count)
                return Plan(steps, count, tuple(kept), seconds(kept, steps, count), notes)
    kept = names[:1]
    note = "Not even one cell fits this time at this effort; one is run all the same."
    notes = (*_notes(len(names) - 1, iterations, least, agents, few), note)
    return Plan(least, few, tuple(kept), seconds(kept, least, few), notes)


def remaining_fits(plan: Plan, name: str, elapsed: float, ratio: float, budget: float) -> bool:
    """Whether a cell that has not begun may still be begun.

    Args:
        plan: From `fit`.
        name: Of the cell.
        elapsed: Seconds since the audit began.
        ratio: How many times longer cells took than was estimated, so far.
        budget: Seconds.
    """
    return elapsed + ratio * plan.seconds[name] <= budget


def _shorter(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[:count] for count in range(len(names), 0, -1)]


def _most(fits: Callable[[int], bool], least: int, most: int) -> int | None:
    """The largest number of steps that fits; None where not even the least does."""
    if not fits(least):
        return None
    low, high = least, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _notes(dropped: int, iterations: int, steps: int, agents: int, count: int) -> tuple[str, ...]:
    found = []
    if steps < iterations:
        found.append(f"{steps:,} steps instead of {iterations:,}: a weaker attack, which may miss a leak.")
    if count < agents:
        found.append(f"{count} agents instead of {agents}.")
    if dropped:
        which = "1 cell was left out, the one" if dropped == 1 else f"{dropped} cells were left out, those"
        found.append(f"{which} furthest from your settings.")
    return tuple(found)


def interpolate(measured: Mapping[int, Cost], size: int) -> Cost:
    """The cost at a batch size from those that were measured: straight lines between and beyond them."""
    if size in measured:
        return measured[size]
    sizes = sorted(measured)
    if len(sizes) == 1:
        only = measured[sizes[0]]
        return replace(only, step=only.step * max(1.0, size / sizes[0]))
    low = max([known for known in sizes[:-1] if known <= size], default=sizes[0])
    high = sizes[sizes.index(low) + 1]
    share = (size - low) / (high - low)

    def at(first: float, second: float) -> float:
        return max(first + share * (second - first), min(first, second) / 10)

    return Cost(at(measured[low].overhead, measured[high].overhead), at(measured[low].step, measured[high].step))

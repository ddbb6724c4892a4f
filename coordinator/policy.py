"""Decisions of the coordinator as pure functions: numbers in, a decision out."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from statistics import median

from ..agents import AgentsConfig, Outcome, Standing
from .config import CoordinatorConfig
from .phase import Phase, Wait

_OUT = (Outcome.DROPPED, Outcome.NOT_FINITE, Outcome.DIVERGED)


@dataclass(frozen=True)
class Round:
    """One round: where it begins and ends, and whether a consensus is formed then."""

    index: int
    from_step: int
    until_step: int
    forms_consensus: bool


def plan_rounds(iterations: int, config: CoordinatorConfig) -> list[Round]:
    """All rounds of a run. The last round always forms a consensus: it is a candidate for the answer."""
    ends = [*range(config.period, iterations, config.period), iterations]
    start = config.start * iterations
    begins = [0, *ends[:-1]]
    return [
        Round(index, begin, end, end >= start or end == iterations)
        for index, (begin, end) in enumerate(zip(begins, ends, strict=True))
    ]


def usable(standings: Sequence[Standing]) -> list[int]:
    """Positions of the seeds that are still in the run."""
    return [index for index, standing in enumerate(standings) if standing.outcome not in _OUT]


def fresh(standings: Sequence[Standing], config: CoordinatorConfig) -> list[int]:
    """Positions of the usable seeds that are not too far behind the median seed (``async``)."""
    positions = usable(standings)
    if not positions:
        return []
    middle = median(standings[index].step for index in positions)
    oldest = middle - config.staleness * config.period
    return [index for index in positions if standings[index].step >= oldest]


@dataclass(frozen=True)
class Go:
    """The round may begin with these agents."""

    members: tuple[int, ...]


def decide_members(present: Set[int], room: int, waited_seconds: float, config: AgentsConfig) -> Go | Wait:
    """Who takes part when a run begins or goes on.

    All agents that the cluster has room for are waited for, up to ``agents.patience``; with fewer than
    ``agents.minimum`` the run waits for as long as it takes.

    Args:
        present: Positions of the agents that have a process.
        room: For how many agents the cluster has room now.
        waited_seconds: Since the wait began; infinite where nobody is to be waited for (a run under way).
        config: The wishes.
    """
    expected = min(config.count, room)
    if len(present) < expected and waited_seconds < config.patience:
        return Wait(Phase.WAITING, len(present), expected)
    if len(present) < config.minimum:
        return Wait(Phase.PAUSED, len(present), config.minimum)
    return Go(tuple(sorted(present)))


def give_up(lost_seconds: float, others: int, config: AgentsConfig) -> bool:
    """Whether a round goes on without an agent that was lost.

    Args:
        lost_seconds: Since it was lost.
        others: Agents that are at work or done.
        config: The wishes.
    """
    return lost_seconds >= config.patience and others >= config.minimum


def enough_done(done: int, members: int, last_round: bool, waits_for_all: bool) -> bool:
    """Whether a round ends: in ``sync`` mode and at the end with all agents, else when the middle one is done."""
    return done >= members if waits_for_all or last_round else done > members // 2

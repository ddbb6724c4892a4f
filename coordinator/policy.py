"""Decisions of the coordinator as pure functions: numbers in, a decision out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ..agents import Candidate, Outcome
from .config import CoordinatorConfig

_OUT = (Outcome.DROPPED, Outcome.NOT_FINITE, Outcome.DIVERGED)


@dataclass(frozen=True)
class Round:
    """One round: where it ends, and whether a consensus is formed then."""

    index: int
    until_step: int
    forms_consensus: bool


def plan_rounds(iterations: int, config: CoordinatorConfig) -> list[Round]:
    """All rounds of a run. The last round always forms a consensus: it is a candidate for the answer."""
    ends = [*range(config.period, iterations, config.period), iterations]
    start = config.start * iterations
    return [Round(index, end, end >= start or end == iterations) for index, end in enumerate(ends)]


def usable(candidates: Sequence[Candidate]) -> list[int]:
    """Positions of the candidates whose seed is still in the run."""
    return [index for index, candidate in enumerate(candidates) if candidate.outcome not in _OUT]


def fresh(candidates: Sequence[Candidate], config: CoordinatorConfig) -> list[int]:
    """Positions of the usable candidates that are not too far behind the median seed (``async``)."""
    positions = usable(candidates)
    if not positions:
        return []
    middle = median(candidates[index].step for index in positions)
    oldest = middle - config.staleness * config.period
    return [index for index in positions if candidates[index].step >= oldest]

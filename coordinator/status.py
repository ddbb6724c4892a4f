"""A picture of a running attack, small enough to be asked for every second."""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from ..agents import Account, Outcome
from .events import Event
from .phase import Phase, Wait
from .progress import Progress, steps_per_second


@dataclass(frozen=True)
class SeedStatus:
    """Where one seed is."""

    seed: int
    step: int = 0
    present: bool = True
    """False while the seed has no process: not placed yet, or lost with its node."""
    incarnation: int = 0
    """Restarts after it diverged."""
    deaths: int = 0
    """Times its process was lost."""
    losses: dict[str, float] = field(default_factory=dict)
    """Of the last account, by term."""
    outcome: Outcome = Outcome.RUNNING
    steps_per_second: float = 0.0
    """While it computed, in the last round."""
    behind: float = 0.0
    """Periods that the last account was behind the median seed (staleness; 0 in ``sync`` mode)."""


@dataclass(frozen=True)
class Status:
    """Where the coordinator is."""

    rounds: int
    iterations: int
    seeds: tuple[SeedStatus, ...]
    phase: Phase = Phase.STARTING
    wait: Wait | None = None
    """What it waits for, in the phases in which it does."""
    round: int = 0
    """Rounds finished."""
    round_seconds: float = 0.0
    """Duration of the last round."""
    computing: float = 0.0
    """Share of the last round that the slowest agent spent in optimisation steps."""
    rejected: float = 0.0
    """Share of warps that registration refused in the last consensus."""
    saved_round: int = -1
    """Newest round with a whole checkpoint."""
    events: tuple[Event, ...] = ()
    """What happened, in the order in which each event happened first."""
    events_left_out: int = 0
    """Different events that there was no more room for."""
    began: float = field(default_factory=time.time)
    """Unix time at which the run began."""
    detail: str = ""
    """How far the preparation is, in a few words; it counts in that phase alone."""

    @property
    def doing(self) -> str:
        """What a person reads of the phase, of the wait in it, and of how far it is."""
        if self.wait is not None:
            return str(self.wait)
        further = f": {self.detail}" if self.detail and self.phase is Phase.PREPARING else ""
        return f"{self.phase.value}{further}"


def seed_statuses(
    seeds: Sequence[int], progress: Progress, members: Set[int], period: int | None
) -> tuple[SeedStatus, ...]:
    """Where each seed is.

    Args:
        seeds: Of the run, by position.
        progress: What the rounds have produced.
        members: Positions of the seeds that take part.
        period: Steps of a period where seeds may be behind each other (``async``); None in ``sync`` mode.
    """
    steps = sorted(account.step for account in progress.accounts.values())
    middle = steps[len(steps) // 2] if steps else 0
    found = []
    for position, seed in enumerate(seeds):
        deaths, present = progress.deaths.get(position, 0), position in members
        account = progress.accounts.get(position)
        if account is None:
            found.append(SeedStatus(seed, present=present, deaths=deaths))
            continue
        behind = max(0, middle - account.step) / period if period is not None else 0.0
        found.append(_seed_status(account, present, deaths, behind))
    return tuple(found)


def _seed_status(account: Account, present: bool, deaths: int, behind: float) -> SeedStatus:
    return SeedStatus(
        account.seed,
        step=account.step,
        present=present,
        incarnation=account.incarnation,
        deaths=deaths,
        losses=account.losses,
        outcome=account.outcome,
        steps_per_second=steps_per_second(account),
        behind=behind,
    )

"""A picture of a running attack, small enough to be asked for every second."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..agents import Outcome


@dataclass(frozen=True)
class Status:
    """Where the coordinator is. ``candidates`` holds seed, incarnation, step, losses and outcome of each agent."""

    rounds: int
    iterations: int
    seeds: tuple[int, ...]
    phase: str = "starting"
    round: int = 0
    """Rounds finished."""
    candidates: tuple[tuple[int, int, int, dict[str, float], Outcome], ...] = ()
    messages: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    """Where each agent is at this moment."""
    began: float = field(default_factory=time.time)
    """Unix time at which the coordinator began."""

"""What a run is at, and what it waits for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What a run is at; the value is what a person reads."""

    STARTING = "starting"
    PREPARING = "reading labels and peeling layers"
    WAITING = "waiting for agents"
    """For those that the cluster has room for."""
    PAUSED = "paused"
    """It stands still for want of machines."""
    OPTIMISING = "optimising"
    CHOOSING = "choosing images"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True)
class Wait:
    """A round may not begin, or not go on, before more agents are present; as text it is for people."""

    phase: Phase
    """`Phase.WAITING` or `Phase.PAUSED`."""
    present: int
    """Agents that have a process."""
    wanted: int
    """How many are waited for; while the run is paused, the least it goes on with."""

    @property
    def paused(self) -> bool:
        """Whether it stands still for want of machines."""
        return self.phase is Phase.PAUSED

    def __str__(self) -> str:
        if not self.paused:
            return f"{self.phase}: {self.present} of {self.wanted} have a process"
        verb = "is" if self.present == 1 else "are"
        return f"{self.phase}: {self.present} of at least {self.wanted} agents {verb} present, waiting for nodes"

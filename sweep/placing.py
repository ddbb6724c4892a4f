"""How many cells run at once, and what the agents of each are given: so much that all of them have their place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..agents import AgentsConfig


@dataclass(frozen=True)
class Placing:
    """For every cell alike."""

    at_once: int
    cpus: float
    """Reserved for each agent."""
    gpus: float
    threads: int
    """Compute threads of each agent."""

    def apply(self, agents: AgentsConfig) -> AgentsConfig:
        """The agents' settings with their place; where the user chose one, it stays."""
        return replace(
            agents,
            cpus=agents.cpus or self.cpus,
            gpus=self.gpus if agents.gpus is None else agents.gpus,
            threads=agents.threads or self.threads,
        )

    def lanes(self, agents: int, available: Mapping[str, float]) -> float:
        """How many agents of a cell really compute at the same time."""
        if self.gpus > 0:
            return min(float(agents), max(1.0, available.get("GPU", 1.0) / self.at_once))
        return min(float(agents), max(1.0, available.get("CPU", 1.0) / self.at_once / self.threads))


def place(agents: AgentsConfig, wanted: int, cells: int, available: Mapping[str, float]) -> Placing:
    """A place for the agents of as many cells as fit.

    Args:
        agents: The settings that every cell has.
        wanted: Cells at once; 0 to decide here.
        cells: How many there are.
        available: All the cluster's resources as Ray counts them (``CPU``, ``GPU``).
    """
    cpus, gpus = available.get("CPU", 1.0), available.get("GPU", 0.0)
    on_gpus = gpus > 0 and agents.gpus != 0
    room = gpus if on_gpus else cpus
    each = (agents.gpus or 1.0) if on_gpus else (agents.cpus or 1.0)
    at_once = wanted or max(1, int(room / (each * agents.count) + 1e-6))
    at_once = max(1, min(at_once, cells))
    seats = at_once * agents.count
    # Rounded down, so that all agents fit; Ray counts in ten-thousandths.
    cpu_part = max(0.01, math.floor(min(1.0, cpus / seats) * 100) / 100)
    gpu_part = min(1.0, max(0.01, math.floor(gpus / seats * 100) / 100)) if on_gpus else 0.0
    return Placing(at_once, cpu_part, gpu_part, max(1, int(cpus / seats)))

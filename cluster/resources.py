"""What each agent gets of the cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..agents import AgentsConfig


@dataclass(frozen=True)
class Share:
    """Resources of one agent. ``message`` says where it differs from what was asked for."""

    cpus: float
    gpus: float
    threads: int
    message: str | None = None


def share(config: AgentsConfig, available: Mapping[str, float]) -> Share:
    """Each agent's own GPU where the cluster has GPUs; otherwise its even part of the CPUs.

    Args:
        config: Wishes; zeros mean "decide for me".
        available: The cluster's resources as Ray counts them (``CPU``, ``GPU``).
    """
    cpus, gpus = available.get("CPU", 1.0), available.get("GPU", 0.0)
    even = cpus / config.count
    # Rounded down, so that all agents fit; Ray counts in ten-thousandths.
    reserved = config.cpus or max(0.01, math.floor(min(1.0, even) * 100) / 100)
    threads = config.threads or max(1, int(even))
    wished = config.gpus if gpus > 0 else 0.0
    if wished * config.count <= gpus:
        return Share(reserved, wished, threads)
    part = math.floor(gpus / config.count * 100) / 100
    message = (
        f"agents.gpus={config.gpus:g} for {config.count} agents is more than the cluster's {gpus:g} GPUs; "
        f"each agent takes {part:g}."
    )
    return Share(reserved, part, threads, message)

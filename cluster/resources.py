"""What each agent gets of the cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..agents import AgentsConfig


@dataclass(frozen=True)
class Allotment:
    """Resources of one agent. ``message`` says where it differs from what was asked for."""

    cpus: float
    gpus: float
    threads: int
    message: str | None = None

    def room(self, available: Mapping[str, float]) -> int:
        """For how many agents a cluster has room.

        Args:
            available: All its resources as Ray counts them, used or not.
        """
        rooms = [available.get(name, 0.0) / need for name, need in (("CPU", self.cpus), ("GPU", self.gpus)) if need > 0]
        # Ray counts in ten-thousandths; without this, three thirds are not quite one.
        return int(min(rooms, default=math.inf) + 1e-6) if rooms else 2**31


def allot(config: AgentsConfig, available: Mapping[str, float], elastic: bool = False) -> Allotment:
    """Each agent's own GPU where there are GPUs; otherwise its even part of the CPUs.

    Args:
        config: Wishes; zeros and None mean "decide for me".
        available: The cluster's resources as Ray counts them (``CPU``, ``GPU``).
        elastic: The cluster may grow, so that each agent takes what was asked for and the others wait for more nodes;
            a machine of fixed size is shared among all agents instead.
    """
    cpus, gpus = available.get("CPU", 1.0), available.get("GPU", 0.0)
    even = cpus / config.count
    # Rounded down, so that all agents fit; Ray counts in ten-thousandths.
    reserved = config.cpus or max(0.01, math.floor(min(1.0, even) * 100) / 100)
    if elastic and cpus == 0:
        reserved = config.cpus or 1.0  # nodes are still to come
    threads = config.threads or max(1, int(even))
    wished = config.gpus if config.gpus is not None else float(gpus > 0)
    if elastic and wished > 0:
        # Beside a GPU an agent needs one CPU; how many there will be is not known yet.
        return Allotment(config.cpus or 1.0, wished, config.threads or 1)
    if gpus == 0 and wished > 0:
        message = f"agents.gpus={wished:g}: this machine has no GPU that Ray knows of, so agents use CPUs."
        return Allotment(reserved, 0.0, threads, message)
    if wished * config.count <= gpus:
        return Allotment(reserved, wished, threads)
    part = math.floor(gpus / config.count * 100) / 100
    message = (
        f"agents.gpus={wished:g} for {config.count} agents is more than the machine's {gpus:g} GPUs; "
        f"each agent takes {part:g}."
    )
    return Allotment(reserved, part, threads, message)

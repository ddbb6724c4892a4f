"""What an attack takes here: a short real one, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

from ..capture import simulate_client
from ..cluster import reconstruct
from ..settings.run import RunConfig
from .budget import Cost
from .cell import Progress

_STEPS = 24


def calibrate(config: RunConfig, tell: Callable[[Progress], None]) -> Cost:
    """Time a few steps of a cell's attack. The work of a job.

    Raises:
        ValueError, RuntimeError: What cannot be carried out, in one sentence.
    """
    tell(Progress("measuring", began=time.time()))
    began = time.monotonic()
    update, model, _ = simulate_client(config.client, config.seed)
    steps = min(_STEPS, config.agents.iterations)
    agents = replace(config.agents, iterations=steps)
    coordinator = replace(config.coordinator, period=max(1, steps // 3))
    found = reconstruct(update, model, replace(config, agents=agents, coordinator=coordinator), detach=False)
    # The first round pays for what is done once.
    last = [row for row in found.history if row["round"] == max(row["round"] for row in found.history)]
    step = 1 / median(row["steps_per_second"] for row in last)
    return Cost(max(0.0, time.monotonic() - began - steps * step), step)

"""Random faults in one run on a real local Ray; the images are those of a run without any.

The seed is printed. ``GRADINVERSION_CHAOS_SEED=7 pytest -s tests/distributed/test_distributed_chaos.py`` draws the same
faults again.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import AgentsConfig, Outcome
from gradinversion.capture import CapturedUpdate
from gradinversion.cluster import reconstruct
from gradinversion.coordinator import AttackConfig, CoordinatorConfig, Reconstruction, Status
from torch import nn

SEED = "GRADINVERSION_CHAOS_SEED"
CONFIG = AttackConfig(
    labels="0,3",
    agents=AgentsConfig(count=2, iterations=2400, warmup=4, patience=600),
    coordinator=CoordinatorConfig(period=150, start=0.2),
)
# Of 16 rounds. Faults come no later than this one, so that the last of them still meets a run.
LAST_ROUND = 8
KINDS = ("kill an agent", "kill the coordinator", "kill both", "take the storage away", "stop an agent")
# How long these two last. Nothing waits for them.
OUTAGE_SECONDS, STOP_SECONDS = 0.5, 1.0


@dataclass(frozen=True)
class Fault:
    """Comes once a round is over."""

    round: int
    kind: str
    agent: int
    """Which, of those that there are then."""


def draw(seed: int) -> list[Fault]:
    chance = random.Random(seed)
    faults = [
        Fault(chance.randint(1, LAST_ROUND), chance.choice(KINDS), chance.randrange(CONFIG.agents.count))
        for _ in range(chance.randint(4, 6))
    ]
    return sorted(faults, key=lambda fault: fault.round)


class Chaos:
    """Brings the faults, one after another."""

    def __init__(self, faults: list[Fault], processes: Any, switch: Any) -> None:
        self.left = list(faults)
        self._processes, self._switch = processes, switch

    def __call__(self, status: Status) -> None:
        agents, coordinators = self._processes.agents(), self._processes.coordinators()
        if not self.left or status.round < self.left[0].round or not agents or not coordinators:
            return
        fault = self.left.pop(0)
        print(f"after round {status.round}: {fault}", flush=True)
        self._bring(fault.kind, agents[fault.agent % len(agents)], coordinators)

    def _bring(self, kind: str, agent: int, coordinators: list[int]) -> None:
        if kind == "kill an agent":
            self._processes.kill(agent)
        elif kind == "kill the coordinator":
            self._processes.kill(*coordinators)
        elif kind == "kill both":
            self._processes.kill(agent, *coordinators)
        elif kind == "take the storage away":
            self._switch.off()
            time.sleep(OUTAGE_SECONDS)
            self._switch.on()
        else:
            self._processes.stop(agent)
            time.sleep(STOP_SECONDS)
            self._processes.go_on(agent)


@pytest.mark.slow
def test_random_faults_do_not_change_the_images(
    update: CapturedUpdate,
    model: nn.Module,
    undisturbed: Callable[[AttackConfig], Reconstruction],
    processes: Any,
    switch: Any,
    tmp_path: Path,
) -> None:
    # Not from `random`, whose numbers are the same in every test.
    seed = int(os.environ.get(SEED) or secrets.randbelow(10**6))
    faults = draw(seed)
    print(f"{SEED}={seed}", *faults, sep="\n", flush=True)
    whole = undisturbed(CONFIG)
    chaos = Chaos(faults, processes, switch)
    survived = reconstruct(update, model, CONFIG, out=tmp_path / "out", watch=chaos)
    print(*survived.messages, sep="\n", flush=True)
    assert not chaos.left, "the run ended before all faults had come"
    assert survived.outcome is Outcome.FINISHED
    assert torch.equal(survived.images, whole.images)
    assert torch.equal(survived.candidate_images, whole.candidate_images)

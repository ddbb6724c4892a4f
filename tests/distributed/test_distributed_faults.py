"""An agent's process is killed in the middle of a run on a real local Ray."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gradinversion.agents import AgentsConfig, Outcome
from gradinversion.capture import CapturedUpdate
from gradinversion.cluster import reconstruct
from gradinversion.coordinator import AttackConfig, CoordinatorConfig, Mode, Status
from torch import nn

CONFIG = AttackConfig(
    labels="0,3",
    agents=AgentsConfig(count=2, iterations=1200, warmup=4),
    coordinator=CoordinatorConfig(period=200, start=0.3),
)


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


def agents_of_this_test() -> list[int]:
    """Agent processes whose line of parents leads here."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if not (entry / "cmdline").read_text().startswith("ray::AgentProcess"):
                continue
            ancestor = int(entry.name)
            while ancestor > 1 and ancestor != os.getpid():
                ancestor = parent(ancestor)
            if ancestor == os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


class Killer:
    """Kills one agent once the given round is over."""

    def __init__(self, after_round: int) -> None:
        self.after_round = after_round
        self.killed: int | None = None

    def __call__(self, status: Status) -> None:
        if self.killed is None and self.after_round <= status.round < status.rounds:
            self.killed = agents_of_this_test()[-1]
            os.kill(self.killed, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the agents' processes through /proc")
def test_a_killed_agent_comes_back_and_the_images_are_the_same(
    update: CapturedUpdate, model: nn.Module, tmp_path: Path
) -> None:
    whole = reconstruct(update, model, CONFIG)
    killer = Killer(after_round=1)
    healed = reconstruct(update, model, CONFIG, out=tmp_path, watch=killer)
    assert killer.killed is not None
    assert any("was lost" in message for message in healed.messages)
    assert torch.equal(healed.images, whole.images)
    assert torch.equal(healed.candidate_images, whole.candidate_images)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the agents' processes through /proc")
def test_in_async_mode_a_killed_agent_comes_back_too(update: CapturedUpdate, model: nn.Module, tmp_path: Path) -> None:
    config = replace(CONFIG, coordinator=replace(CONFIG.coordinator, mode=Mode.ASYNC))
    killer = Killer(after_round=1)
    healed = reconstruct(update, model, config, out=tmp_path, watch=killer)
    assert killer.killed is not None
    assert healed.outcome is Outcome.FINISHED
    assert [candidate.step for candidate in healed.candidates] == [1200, 1200]
    assert any("was lost" in message for message in healed.messages)

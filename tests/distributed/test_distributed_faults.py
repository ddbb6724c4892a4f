"""Agents are killed, and storage fails, in the middle of a run on a real local Ray."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import AgentsConfig, Outcome
from gradinversion.capture import CapturedUpdate, capture_gradient
from gradinversion.cluster import reconstruct
from gradinversion.coordinator import AttackConfig, CoordinatorConfig, Mode, Reconstruction, Status
from gradinversion.peeling import PeelingConfig
from torch import nn

CONFIG = AttackConfig(
    labels="0,3",
    # Long enough that whoever looks ten times a second sees it in the middle, also on a fast machine.
    agents=AgentsConfig(count=2, iterations=800, warmup=4, patience=600),
    coordinator=CoordinatorConfig(period=100, start=0.3),
)
# Short rounds, so that there are many states to be written.
MANY_ROUNDS = replace(
    CONFIG,
    agents=replace(CONFIG.agents, iterations=1200),
    coordinator=replace(CONFIG.coordinator, period=40),
)
Undisturbed = Callable[[AttackConfig], Reconstruction]


def assert_bit_equal(found: Reconstruction, wanted: Reconstruction) -> None:
    assert found.outcome is wanted.outcome is Outcome.FINISHED
    assert torch.equal(found.images, wanted.images)
    assert torch.equal(found.candidate_images, wanted.candidate_images)


class Killer:
    """Kills one agent once the given round is over, and its successor as soon as that is there, so many times."""

    def __init__(self, processes: Any, after_round: int, times: int = 1) -> None:
        self._processes, self._after_round, self._times = processes, after_round, times
        self.killed: list[int] = []

    def __call__(self, status: Status) -> None:
        if not self.killed and self._after_round <= status.round < status.rounds:
            self._others = self._processes.agents()[:-1]
            self._kill_one()
        while self.killed and len(self.killed) < self._times:
            self._processes.wait_until(self._successors, "the killed agent has a successor")
            self._kill_one()

    def _successors(self) -> list[int]:
        return [process for process in self._processes.agents() if process not in self._others]

    def _kill_one(self) -> None:
        (process,) = self._successors()
        self._processes.kill(process)
        self.killed.append(process)


@pytest.mark.parametrize("times", [1, 2])
def test_a_killed_agent_comes_back_and_the_images_are_the_same(
    update: CapturedUpdate, model: nn.Module, undisturbed: Undisturbed, processes: Any, tmp_path: Path, times: int
) -> None:
    whole = undisturbed(CONFIG)
    killer = Killer(processes, after_round=1, times=times)
    healed = reconstruct(update, model, CONFIG, out=tmp_path, watch=killer)
    assert len(set(killer.killed)) == times
    assert any("was lost" in message for message in healed.messages)
    assert_bit_equal(healed, whole)


class WriteHunter:
    """Kills an agent in the middle of writing its state.

    A file that is being written has a name of its own, with the number of the process that writes. That process is
    stopped; if the file is still there then, it will stay: the process is killed. Else the next one is tried.
    """

    def __init__(self, processes: Any, checkpoints: Path) -> None:
        self._processes, self._checkpoints = processes, checkpoints
        self._end = threading.Event()
        self.torn: Path | None = None
        self._thread = threading.Thread(target=self._hunt)

    def __enter__(self) -> WriteHunter:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _hunt(self) -> None:
        # A write takes some milliseconds; a hunter that never rests would take a core from the agents.
        while self.torn is None and not self._end.wait(0.0002):
            # Not before there is a checkpoint to go back to.
            if not list(self._checkpoints.glob("round-*/manifest.json")):
                continue
            for partial in self._checkpoints.glob("round-*/.seed-*.partial"):
                if self._tear(partial):
                    return

    def _tear(self, partial: Path) -> bool:
        process = int(partial.name.split(".")[-2].split("-")[0])
        self._processes.stop(process)
        if partial.exists():
            self._processes.kill(process)
            self.torn = partial
            return partial.exists()
        self._processes.go_on(process)
        return False


def test_an_agent_killed_while_its_state_is_written(
    update: CapturedUpdate, model: nn.Module, undisturbed: Undisturbed, processes: Any, tmp_path: Path
) -> None:
    whole = undisturbed(MANY_ROUNDS)
    with WriteHunter(processes, tmp_path / "checkpoints") as hunter:
        healed = reconstruct(update, model, MANY_ROUNDS, out=tmp_path)
    assert hunter.torn is not None, "the run ended before a write was hit"
    assert any("was lost" in message for message in healed.messages)
    assert_bit_equal(healed, whole)


def test_in_async_mode_a_killed_agent_ends_where_it_would_have(
    model: nn.Module, processes: Any, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Within 2 % of the gradient loss, on a problem where that means something.

    The network is smooth and total variation decides between the images that the gradient allows, so every seed goes to
    one minimum: seeds differ by 0.2 %. The learning rate is so low that the way there takes half of the steps: a seed
    that began anew where the agent is killed, or lost rounds of its way, would end far from it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        smooth = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(6 * 64, 4)).eval()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    update = capture_gradient(smooth, images, torch.tensor([0, 3]), normalisation=((0.5,) * 3, (0.25,) * 3))
    slow = replace(CONFIG.agents, iterations=1200, learning_rate=0.01)
    sync = AttackConfig(
        labels=CONFIG.labels,
        agents=slow,
        coordinator=replace(CONFIG.coordinator, period=200),
        peeling=PeelingConfig(enabled=False),
    )
    config = replace(sync, coordinator=replace(sync.coordinator, mode=Mode.ASYNC))
    whole = reconstruct(update, smooth, sync)
    killer = Killer(processes, after_round=1)
    healed = reconstruct(update, smooth, config, out=tmp_path, watch=killer)
    assert len(killer.killed) == 1
    assert healed.outcome is Outcome.FINISHED
    assert [candidate.step for candidate in healed.candidates] == [1200, 1200]
    assert any("was lost" in message for message in healed.messages)
    assert healed.gradient_loss == pytest.approx(whole.gradient_loss, rel=0.02)
    for candidate in healed.candidates:
        assert candidate.losses["gradient"] == pytest.approx(whole.gradient_loss, rel=0.02)


class Outage:
    """Takes the checkpoints away after a round, until several rounds more have been made."""

    def __init__(self, processes: Any, switch: Any, out: Path, after_round: int, rounds: int) -> None:
        self._processes, self._switch, self._out = processes, switch, out
        self._after_round, self._rounds = after_round, rounds
        self.over = False

    def __call__(self, status: Status) -> None:
        if self.over or status.round < self._after_round:
            return
        self._switch.off()
        until = self._newest_round() + self._rounds
        assert until < status.rounds, "the run is too short for the outage"
        self._processes.wait_until(lambda: self._newest_round() >= until, "the run goes on without checkpoints")
        self._switch.on()
        self.over = True

    def _newest_round(self) -> int:
        # The curves lie beside the checkpoints, so they are written all the same.
        return int(json.loads((self._out / "metrics.jsonl").read_text().splitlines()[-1])["round"])


def test_storage_that_fails_for_a_while_is_told_once_and_changes_nothing(
    update: CapturedUpdate, model: nn.Module, undisturbed: Undisturbed, processes: Any, switch: Any, tmp_path: Path
) -> None:
    whole = undisturbed(MANY_ROUNDS)
    out = tmp_path / "out"
    outage = Outage(processes, switch, out, after_round=1, rounds=4)
    result = reconstruct(update, model, MANY_ROUNDS, out=out, watch=outage)
    assert outage.over
    assert sum("was not saved" in message for message in result.messages) == 1, result.messages
    assert any("saved again" in message for message in result.messages)
    assert (out / "checkpoints" / f"round-{result.rounds - 1:06d}" / "manifest.json").exists()
    assert_bit_equal(result, whole)

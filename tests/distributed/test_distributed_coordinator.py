"""The coordinator is killed in the middle of a run on a real local Ray."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import AgentsConfig, Outcome
from gradinversion.capture import CapturedUpdate
from gradinversion.cluster import reconstruct
from gradinversion.coordinator import AttackConfig, CoordinatorConfig, Phase, Reconstruction, Status
from torch import nn

CONFIG = AttackConfig(
    labels="0,3",
    agents=AgentsConfig(count=2, iterations=800, warmup=4, patience=600),
    coordinator=CoordinatorConfig(period=100, start=0.3),
)
Undisturbed = Callable[[AttackConfig], Reconstruction]
# Less than a state takes, more than a process writes into its log meanwhile.
SMALL_FILE_BYTES = 16 * 2**10


class CoordinatorKiller:
    """Kills the coordinator in the middle of a round, with one agent if so wished.

    An agent that is stopped holds the round: the coordinator can only be waiting for it when it is killed.
    """

    def __init__(self, processes: Any, after_round: int, agent_too: bool) -> None:
        self._processes, self._after_round, self._agent_too = processes, after_round, agent_too
        self.killed: list[int] = []
        self.agents_before: list[int] = []
        self.agents_after: list[int] = []
        self.round = self.saved_round = -1

    def __call__(self, status: Status) -> None:
        if self.killed:
            # While they are at work: at the end, agents are ended one after another.
            if status.phase is Phase.OPTIMISING and self.round < status.round < status.rounds - 1:
                self.agents_after = self._processes.agents()
        elif self._after_round <= status.round < status.rounds - 1 and status.saved_round >= 0:
            self.round, self.saved_round = status.round, status.saved_round
            self.agents_before = self._processes.agents()
            held = self.agents_before[0]
            self._processes.stop(held)
            self.killed = self._processes.coordinators() + self.agents_before[1:] * self._agent_too
            self._processes.kill(*self.killed)
            self._processes.go_on(held)


def assert_bit_equal(found: Reconstruction, wanted: Reconstruction) -> None:
    assert found.outcome is wanted.outcome is Outcome.FINISHED
    assert torch.equal(found.images, wanted.images)
    assert torch.equal(found.candidate_images, wanted.candidate_images)


@pytest.mark.parametrize("agent_too", [False, True], ids=["alone", "with an agent"])
def test_a_killed_coordinator_goes_on_from_its_checkpoint_with_the_agents_that_it_finds(
    update: CapturedUpdate, model: nn.Module, undisturbed: Undisturbed, processes: Any, tmp_path: Path, agent_too: bool
) -> None:
    whole = undisturbed(CONFIG)
    killer = CoordinatorKiller(processes, after_round=2, agent_too=agent_too)
    healed = reconstruct(update, model, CONFIG, out=tmp_path, watch=killer)
    assert len(killer.killed) == 1 + agent_too
    (continued,) = [message for message in healed.messages if "Continued after round" in message]
    # A round is saved as its index and told as its number. One more may have ended, or become whole, meanwhile.
    after = int(continued.removeprefix("Continued after round ").split()[0])
    assert killer.saved_round + 1 <= after <= killer.round + 1, continued
    spared = [agent for agent in killer.agents_before if agent not in killer.killed]
    assert set(spared) <= set(killer.agents_after), "agents that lived were made again instead of found"
    assert_bit_equal(healed, whole)


def test_a_run_that_ends_with_the_one_who_wants_it_outlives_its_coordinator_too(
    update: CapturedUpdate, model: nn.Module, undisturbed: Undisturbed, processes: Any, tmp_path: Path
) -> None:
    """As the cells of an audit do: their agents are gone with the coordinator, and made again from what was saved."""
    killed: list[int] = []

    def kill(status: Status) -> None:
        if not killed and 2 <= status.round < status.rounds - 1 and status.saved_round >= 0:
            killed.extend(processes.coordinators())
            processes.kill(*killed)

    healed = reconstruct(update, model, CONFIG, out=tmp_path, watch=kill, detach=False)
    assert len(killed) == 1
    assert any("Continued after round" in message for message in healed.messages)
    assert_bit_equal(healed, undisturbed(CONFIG))


class FinalKiller:
    """Kills the coordinator while it chooses images.

    That would be over in no time, but it saves the last round too: one agent cannot write its state meanwhile.
    """

    def __init__(self, processes: Any) -> None:
        self._processes = processes
        self._held: int | None = None
        self.phases: list[Phase] = []
        self.killed = 0

    def __call__(self, status: Status) -> None:
        self.phases.append(status.phase)
        # From a round on that is whole: with none, the next coordinator would begin the run anew.
        if self._held is None and status.saved_round >= 0:
            self._held = self._processes.agents()[0]
            self._limit(SMALL_FILE_BYTES)
        if status.phase is Phase.CHOOSING and not self.killed:
            self._processes.kill(*self._processes.coordinators())
            self.killed += 1
            self._limit(self._hard())

    def _hard(self) -> int:
        assert self._held is not None
        return resource.prlimit(self._held, resource.RLIMIT_FSIZE)[1]

    def _limit(self, size: int) -> None:
        assert self._held is not None
        resource.prlimit(self._held, resource.RLIMIT_FSIZE, (size, self._hard()))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process, as Linux can")
def test_a_coordinator_killed_while_it_chooses_images(
    update: CapturedUpdate, model: nn.Module, undisturbed: Undisturbed, processes: Any, tmp_path: Path
) -> None:
    whole = undisturbed(CONFIG)
    killer = FinalKiller(processes)
    healed = reconstruct(update, model, CONFIG, out=tmp_path, watch=killer)
    assert killer.killed == 1
    assert any("Continued after round" in message for message in healed.messages)
    assert Phase.OPTIMISING in killer.phases[killer.phases.index(Phase.CHOOSING) :]
    assert_bit_equal(healed, whole)

"""Nodes are killed, frozen and drained in the middle of a run; another one is there to take over."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import AgentsConfig
from gradinversion.capture import CapturedUpdate
from gradinversion.cluster import launch, reconstruct
from gradinversion.cluster.coordinator_actor import CoordinatorActor
from gradinversion.coordinator import AttackConfig, CoordinatorConfig, Reconstruction
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from safetensors.torch import load_file
from torch import nn

from .nodes import Begin, Nodes, descendants, wait_until

CONFIG = AttackConfig(
    labels="0,3",
    # However slow the machine: nobody is given up.
    agents=AgentsConfig(count=2, iterations=1600, warmup=4, cpus=1, gpus=0, threads=1, patience=1e6),
    coordinator=CoordinatorConfig(period=400, start=0.3),
)
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds a node's processes through /proc")


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.close()


@pytest.fixture
def nodes(local_ray: Nodes) -> Nodes:
    """One node more than there are agents."""
    local_ray.refill(CONFIG.agents.count + 1)
    return local_ray


@pytest.fixture(scope="module")
def whole(local_ray: Nodes, update: CapturedUpdate, model: nn.Module) -> Reconstruction:
    """Of a run in which nothing happens."""
    local_ray.refill(CONFIG.agents.count)
    return reconstruct(update, model, CONFIG)


class Aside:
    """Makes the coordinator on a node without agents: beside the head it would take the head and this test with it."""

    def __init__(self, node: str) -> None:
        self._node = NodeAffinitySchedulingStrategy(node, soft=True)

    def options(self, **options: Any) -> Any:
        # A byte of memory: Ray places an actor that asks for nothing anywhere, whatever its strategy.
        place = {"memory": 1, "resources": {}, "scheduling_strategy": self._node}
        return CoordinatorActor.options(**options | place)


def assert_equal(healed: Reconstruction, whole: Reconstruction) -> None:
    assert torch.equal(healed.images, whole.images)
    assert torch.equal(healed.candidate_images, whole.candidate_images)


def test_agents_of_a_killed_node_move(nodes: Nodes, begin: Begin, whole: Reconstruction) -> None:
    run = begin(CONFIG)
    place = run.until_amid(1, round=1)
    coordinator = run.place()
    assert coordinator is not None
    assert coordinator.node == nodes.head, "the coordinator is where no machine is taken away"
    nodes.kill(nodes.by_id(place.node))
    assert run.place_other_than(place, seed=1).node != place.node
    healed = run.result()
    assert_equal(healed, whole)
    assert any("The process of seed 1 was lost" in message for message in healed.messages)


def test_agents_leave_a_node_that_will_be_taken_away(
    nodes: Nodes, begin: Begin, whole: Reconstruction, tmp_path: Path
) -> None:
    run = begin(CONFIG)
    place = run.until_amid(1, round=1)
    # It stands still until it has been told to leave: else it might be done with its round by then.
    os.kill(place.process, signal.SIGSTOP)
    nodes.drain(nodes.by_id(place.node), seconds=600)
    run.until_message("The node of seed 1 will be taken away: it saves its state and goes on elsewhere")
    os.kill(place.process, signal.SIGCONT)
    # In the middle of the round: where it is done, the others go on without looking at what it saved.
    left = wait_until(lambda: list(tmp_path.glob("checkpoints/round-000001/seed-1.*.safetensors")), "it saves")
    _, _, step, _ = load_file(left[0])["counters"].tolist()
    assert run.place_other_than(place, seed=1).node != place.node
    nodes.kill(nodes.by_id(place.node))
    assert CONFIG.coordinator.period < step < 2 * CONFIG.coordinator.period
    status = run.until(lambda status: status.seeds[1].step > CONFIG.coordinator.period, "the agent goes on")
    assert [seed.deaths for seed in status.seeds] == [0, 0]
    healed = run.result()
    assert_equal(healed, whole)
    assert not any("was lost" in message for message in healed.messages)


def test_what_a_frozen_agent_does_later_does_not_count(
    nodes: Nodes, begin: Begin, whole: Reconstruction, tmp_path: Path
) -> None:
    """Its node is taken for dead while the network does not reach it, and then it goes on as if nothing had been."""
    run = begin(CONFIG)
    # The third round: one whose states are saved, as those of the first.
    place = run.until_amid(1, round=2)
    node = nodes.by_id(place.node)
    nodes.freeze(node)
    successor = run.place_other_than(place, seed=1)
    os.kill(successor.process, signal.SIGSTOP)  # the old one is to be first
    nodes.thaw(node, workers_only=True)
    wait_until(lambda: list(tmp_path.glob("checkpoints/round-000002/seed-1.*.safetensors")), "the old one writes")
    (late,) = tmp_path.glob("checkpoints/round-000002/seed-1.*.safetensors")
    os.kill(successor.process, signal.SIGCONT)
    healed = run.result()
    assert_equal(healed, whole)
    manifest = json.loads((tmp_path / "checkpoints/round-000002/manifest.json").read_text())
    assert any(name.startswith("seed-1.") for name in manifest["files"])
    assert late.name not in manifest["files"]
    nodes.kill(node)


def test_a_frozen_coordinator_is_replaced_and_fenced_off(
    nodes: Nodes, begin: Begin, whole: Reconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = nodes.add(cpus=0)
    monkeypatch.setattr(launch, "CoordinatorActor", Aside(aside.node_id))
    run = begin(CONFIG)
    run.until_amid(1, round=1)
    place = run.place()
    assert place is not None
    assert place.node == aside.node_id
    nodes.freeze(aside)
    assert run.place_other_than(place).node != place.node
    owner = tmp_path / "checkpoints/owner.json"
    wait_until(lambda: json.loads(owner.read_text())["epoch"] == 2, "the new one owns the run")
    nodes.thaw(aside, workers_only=True)
    healed = run.result()
    nodes.thaw(aside)
    wait_until(lambda: place.process not in descendants(os.getpid()), "the old coordinator ends")
    assert_equal(healed, whole)
    assert json.loads(owner.read_text())["epoch"] == 2
    nodes.kill(aside)

"""Agents join and leave as nodes come and go."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gradinversion.agents import AgentsConfig, Outcome
from gradinversion.coordinator import AttackConfig, CoordinatorConfig, EventKind, Mode, Phase, Status, Wait

from .nodes import Begin, Nodes, Run

# More steps than any machine makes in the time of a test: each run is ended by it.
CONFIG = AttackConfig(
    labels="0,3",
    agents=AgentsConfig(count=2, iterations=200_000, warmup=4, cpus=1, gpus=0, threads=1, patience=3.0),
    coordinator=CoordinatorConfig(period=100, start=0.0),
)
# Whoever waits for this many seconds waits for longer than any test.
FOREVER = 1e6
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds a node's processes through /proc")


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.close()


@pytest.fixture
def nodes(local_ray: Nodes) -> Nodes:
    """Two nodes with a CPU each."""
    local_ray.refill(2)
    return local_ray


def with_agents(config: AttackConfig, **changes: Any) -> AttackConfig:
    return replace(config, agents=replace(config.agents, **changes))


def is_paused(status: Status) -> bool:
    return status.wait == Wait(Phase.PAUSED, 2, 3)


def kill_one_of(run: Run, nodes: Nodes, seed: int) -> None:
    place = run.place(seed)
    assert place is not None
    nodes.kill(nodes.by_id(place.node))


def test_a_run_starts_with_the_agents_that_have_a_place(nodes: Nodes, begin: Begin) -> None:
    run = begin(with_agents(CONFIG, count=4, patience=FOREVER))
    status = run.until(lambda status: status.round >= 2, "rounds are made")
    assert sorted(seed.present for seed in status.seeds) == [False, False, True, True]
    late = [seed.seed for seed in status.seeds if not seed.present]
    nodes.add(cpus=2)
    run.until(lambda status: all(seed.losses for seed in status.seeds), "all have made a round")
    result = run.stop()
    assert [candidate.seed for candidate in result.candidates] == [0, 1, 2, 3]
    (joined,) = [message for message in result.messages if "joined from the consensus" in message]
    assert [seed for seed in range(4) if str(seed) in joined.split(" joined")[0]] == late
    assert result.registration[0]["seeds"] == 2
    assert result.registration[-1]["seeds"] == 4


def test_the_others_go_on_without_a_node_until_there_is_another(nodes: Nodes, begin: Begin) -> None:
    run = begin(CONFIG)
    run.until(lambda status: all(seed.losses for seed in status.seeds), "both have made a round")
    kill_one_of(run, nodes, seed=1)
    alone = run.until_message("Seed 1 was not back in time; the others go on without it until it is")
    run.until(lambda status: status.round >= alone.round + 3, "the others go on")
    nodes.add()
    run.until(lambda status: status.seeds[1].present and bool(status.seeds[1].losses), "seed 1 has made a round")
    result = run.stop()
    assert any("joined from the consensus" in message for message in result.messages)
    assert [candidate.seed for candidate in result.candidates] == [0, 1]
    assert {row["seeds"] for row in result.registration} == {1, 2}
    assert result.outcome is Outcome.INTERRUPTED


@pytest.mark.parametrize("mode", list(Mode))
def test_a_run_ends_without_a_node_that_is_lost_for_good(nodes: Nodes, begin: Begin, mode: Mode) -> None:
    config = with_agents(CONFIG, iterations=4_000)
    run = begin(replace(config, coordinator=replace(config.coordinator, mode=mode)))
    run.until(lambda status: all(seed.losses for seed in status.seeds), "both have made a round")
    spared = run.place(seed=1)
    assert spared is not None
    # The run cannot end before the other agent is given up, however fast the machine is and however late that comes.
    os.kill(spared.process, signal.SIGSTOP)
    kill_one_of(run, nodes, seed=0)
    run.until_message("Seed 0 was not back in time; the others go on without it until it is")
    os.kill(spared.process, signal.SIGCONT)
    result = run.result()
    assert result.outcome is Outcome.FINISHED
    assert [(candidate.seed, candidate.step) for candidate in result.candidates] == [(1, 4_000)]


def test_a_run_pauses_below_the_minimum(nodes: Nodes, begin: Begin) -> None:
    run = begin(with_agents(CONFIG, count=3, minimum=3))
    status = run.until(is_paused, "it is paused before it begins")
    assert status.round == 0
    assert any(event.kind is EventKind.PAUSED for event in status.events)
    nodes.add()
    run.until(lambda status: status.round >= 2, "the run begins")
    kill_one_of(run, nodes, seed=1)
    still = run.until(is_paused, "it is paused in the middle")
    nodes.add()
    status = run.until(lambda status: status.round >= still.round + 2, "the run goes on")
    assert status.phase is Phase.OPTIMISING
    assert all(seed.present for seed in status.seeds)
    kill_one_of(run, nodes, seed=2)
    run.until(is_paused, "it is paused once more")
    result = run.stop()
    assert result.outcome is Outcome.INTERRUPTED
    assert [candidate.seed for candidate in result.candidates] == [0, 1]


def test_a_paused_run_can_be_ended(nodes: Nodes, begin: Begin) -> None:
    run = begin(with_agents(CONFIG, count=3, minimum=3))
    run.until(is_paused, "it is paused")
    result = run.stop()
    assert result.outcome is Outcome.INTERRUPTED
    assert len(result.candidates) == 2


def test_agents_wait_for_a_gpu_and_share_it(nodes: Nodes, begin: Begin) -> None:
    run = begin(with_agents(CONFIG, count=4, gpus=0.25, patience=FOREVER))
    run.until_message("Paused: 0 of at least 1 agents are present, waiting for nodes")
    node = nodes.add(cpus=4, gpus=1)
    run.until(lambda status: status.round >= 1, "the run begins")
    places = [run.place(seed) for seed in range(4)]
    assert [place.node if place else None for place in places] == [node.node_id] * 4
    assert len(run.stop().candidates) == 4
    nodes.kill(node)

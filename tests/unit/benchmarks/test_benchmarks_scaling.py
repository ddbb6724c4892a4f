"""Scaling over agents: the arithmetic, without Ray."""

from __future__ import annotations

import os
from typing import Any

import pytest
from gradinversion.benchmarks.cluster_machine import proportional_memory
from gradinversion.benchmarks.scaling import Watcher, processors, steps_per_second, summarise
from gradinversion.coordinator import Status


def run(agents: int, per_processor: float, **more: Any) -> dict[str, Any]:
    facts = {"agents": agents, "per_processor": per_processor, "steps_per_second": per_processor, "load": 1.0}
    return facts | more


def test_the_first_round_does_not_count() -> None:
    assert steps_per_second(4, 100, {1: 50.0, 2: 2.0, 4: 3.0}) == 4 * 200 / 5


def test_rounds_too_short_to_be_seen_are_told() -> None:
    with pytest.raises(ValueError, match="give longer rounds, with --period"):
        steps_per_second(4, 100, {1: 1.0})


@pytest.mark.parametrize(
    ("agents", "cores", "gpus", "busy"), [(1, 2, 0, 1), (8, 2, 0, 2), (8, 16, 1, 1), (2, 16, 4, 2)]
)
def test_so_many_agents_keep_so_many_busy(agents: int, cores: int, gpus: int, busy: int) -> None:
    assert processors(agents, cores, gpus) == busy


def test_efficiency_is_against_one_agent_of_the_same_turn() -> None:
    runs = [run(1, 10.0), run(8, 9.0), run(1, 20.0), run(8, 16.0), run(1, 10.0), run(8, 8.5)]
    one, eight = summarise(runs)
    assert (one["agents"], one["efficiency"], one["turns"]) == (1, 1.0, 3)
    assert (eight["agents"], eight["efficiency"]) == (8, 0.85)
    assert eight["per_processor"] == 9.0


def test_without_one_agent_there_is_no_efficiency() -> None:
    (line,) = summarise([run(8, 9.0)])
    assert line["efficiency"] is None


def test_a_watcher_takes_down_each_round_once() -> None:
    watcher = Watcher()
    for index, seconds in ((0, 0.0), (1, 5.0), (1, 5.0), (2, 3.0)):
        watcher(Status(rounds=3, iterations=30, seeds=(), round=index, round_seconds=seconds, computing=0.9))
    assert watcher.rounds == {1: 5.0, 2: 3.0}
    assert watcher.agent_bytes == 0  # this process has no agents


def test_a_process_has_its_share_of_memory() -> None:
    assert 10**6 < proportional_memory(os.getpid()) < 10**11

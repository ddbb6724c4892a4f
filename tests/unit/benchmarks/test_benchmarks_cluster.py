"""The parts of the cluster's benchmark that need no Ray."""

from __future__ import annotations

import os
import pickle
import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from gradinversion.agents import Agent
from gradinversion.benchmarks.cluster import judge
from gradinversion.benchmarks.cluster_attack import TINY, Size, make_attack, read_traces, step_times
from gradinversion.benchmarks.cluster_machine import descendants, memory, parent, slope, started
from gradinversion.benchmarks.cluster_recovery import health_settings
from gradinversion.benchmarks.cluster_scale import message_bytes
from gradinversion.benchmarks.cluster_timing import computing_share
from gradinversion.coordinator import Mode
from gradinversion.coordinator.policy import plan_rounds
from gradinversion.target import Target

ROOT = Path(__file__).resolve().parents[3]


def in_thread(name: str, work: object) -> None:
    thread = threading.Thread(target=work, name=name)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_a_step_of_an_agent_sleeps_and_leaves_a_trace(tmp_path: Path) -> None:
    update, model, config = make_attack(TINY, tmp_path, agents=2, rounds=1, mode=Mode.ASYNC)
    target = Target(update, model, torch.arange(TINY.images))
    agent = Agent(target, config.objective, config.agents, seed=3)
    in_thread("seed 3", lambda: agent.run(4))
    times = step_times(tmp_path)[3]
    assert len(times) == 4
    assert min(after - before for before, after in pairwise(times)) >= TINY.step_seconds
    assert agent.step == 4


def test_only_agents_sleep_and_leave_traces(tmp_path: Path) -> None:
    _, model, _ = make_attack(TINY, tmp_path, agents=1, rounds=1)
    model(torch.zeros(2, 3, 16, 16))
    assert read_traces(tmp_path) == {}


def test_receiving_the_target_leaves_a_trace(tmp_path: Path) -> None:
    _, model, _ = make_attack(TINY, tmp_path, agents=1, rounds=1)
    packed = pickle.dumps(model)
    in_thread("seed 0", lambda: pickle.loads(packed))
    (row,) = read_traces(tmp_path)[0]
    assert (row.what, row.process) == ("target", os.getpid())


def test_a_line_that_is_being_written_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "0-12.txt").write_text("step 2.5\nstep 1.5\nste")
    assert step_times(tmp_path) == {0: [1.5, 2.5]}


def test_the_attack_has_the_rounds_and_the_bytes_that_it_is_made_for(tmp_path: Path) -> None:
    assert Size().batch_bytes == 48 * 3 * 224 * 224 * 4
    update, _, config = make_attack(TINY, tmp_path, agents=2, rounds=3)
    assert update.image_count == TINY.images
    rounds = plan_rounds(config.agents.iterations, config.coordinator)
    assert [(one.until_step, one.forms_consensus) for one in rounds] == [(5, True), (10, True), (15, True)]


def test_time_between_rounds_is_not_computing() -> None:
    # Four steps of 1 s a round; 1 s is lost between the two rounds.
    times = [0.0, 1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 8.0]
    assert computing_share(times, period=4) == pytest.approx(7 / 8)
    assert computing_share(times, period=1) == pytest.approx(7 / 8)


def test_the_slope_is_that_of_the_line() -> None:
    assert slope([1, 2, 3, 4], [5, 7, 9, 11]) == pytest.approx(2)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_what_is_read_of_processes() -> None:
    assert parent(os.getpid()) == os.getppid()
    assert os.getpid() in descendants(os.getppid())
    assert started(os.getppid()) <= started(os.getpid())
    before = memory(os.getpid())
    block = torch.ones(32 * 2**20)  # 128 MiB: more than what was freed before can hold
    assert memory(os.getpid()) - before > 64 * 2**20
    del block


def test_the_nodes_have_the_health_checks_that_are_shipped() -> None:
    found = health_settings((ROOT / "cluster" / "gpu.yaml").read_text(encoding="utf-8"))
    assert set(found) == {
        "RAY_health_check_period_ms",
        "RAY_health_check_timeout_ms",
        "RAY_health_check_failure_threshold",
    }


def test_messages_stay_small_beside_images() -> None:
    assert 0 < sum(message_bytes(512, Size())) < 10_000


def test_a_missed_bar_is_called_missed() -> None:
    run = {"mode": "sync", "registration": "none", "computing": 0.96}
    rows = judge(
        {
            "checkpoints": {"overhead": 0.03},
            "coordination": {"runs": [run, run | {"mode": "async"}]},
            "recovery": {"killed process": {"median": {"step": 4.0}}, "killed node": {"median": {"step": 21.0}}},
        }
    )
    assert [row["met"] for row in rows] == [False, True, False, True, False]

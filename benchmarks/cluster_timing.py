"""Checkpoints and coordination: which share of the time agents compute."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from gradinversion.agents import Agent
from gradinversion.cluster import reconstruct
from gradinversion.coordinator import CheckpointStore, Mode, Status, Storage, state_name, write_state
from gradinversion.target import Target

from .cluster_attack import Size, make_attack, step_times
from .cluster_machine import load, local_ray, memory, ours, rounded

_METHODS = ("none", "coarse_to_fine")
# In these, processes touch the memory of their first candidates and import what they register with.
_WARM_ROUNDS = 2


def checkpoints(size: Size, rounds: int = 3, agents: int = 2, pairs: int = 2) -> dict[str, Any]:
    """What saving every round costs: the same run without and with ``out``, in turns, and the parts of the work."""
    runs: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    for _ in range(pairs):
        for name, found in runs.items():
            found.append(_run(size, rounds, agents, Mode.SYNC, "none", saves=name == "with"))
    seconds = {name: statistics.median(run["stepping_seconds"] for run in found) for name, found in runs.items()}
    end = {name: statistics.median(run["end_seconds"] for run in found) for name, found in runs.items()}
    return {
        "agents": agents,
        "rounds": rounds,
        "state_mb": rounded(3 * size.batch_bytes / 1e6),
        "stepping_seconds": seconds,
        "overhead": rounded(seconds["with"] / seconds["without"] - 1),
        "once_at_the_end_seconds": rounded(end["with"] - end["without"]),
        "parts": _parts(size),
        "runs": runs,
    }


def coordination(size: Size, rounds: int = 8, agents: int = 8, methods: Sequence[str] = _METHODS) -> dict[str, Any]:
    """Share of the time that agents compute, by mode and kind of registration; with checkpoints."""
    runs = [
        _run(size, rounds, agents, mode, method, saves=True) | {"mode": mode.value, "registration": method}
        for method in methods
        for mode in Mode
    ]
    return {"agents": agents, "rounds": rounds, "batch_mb": rounded(size.batch_bytes / 1e6), "runs": runs}


class _Watcher:
    """Takes down what the coordinator says of itself, once a round."""

    def __init__(self) -> None:
        self.rounds: dict[int, Status] = {}
        self.agent_bytes = 0
        self.coordinator_bytes = 0

    def __call__(self, status: Status) -> None:
        if status.round > 0 and status.round not in self.rounds:
            self.rounds[status.round] = status
            self.agent_bytes = max(self.agent_bytes, *map(memory, ours("ray::AgentProcess")), 0)
            self.coordinator_bytes = max(self.coordinator_bytes, *map(memory, ours("ray::CoordinatorProcess")), 0)


def _run(size: Size, rounds: int, agents: int, mode: Mode, method: str, saves: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, local_ray(size.object_store(agents)):
        traces = Path(name) / "traces"
        traces.mkdir()
        update, model, config = make_attack(size, traces, agents, rounds, mode, method)
        watcher = _Watcher()
        reconstruct(update, model, config, out=Path(name) / "out" if saves else None, watch=watcher)
        ended = time.time()
        steps = step_times(traces)
    assert {len(times) for times in steps.values()} == {rounds * size.period}, "a step was made twice or not at all"
    period = size.period if mode is Mode.SYNC else 1

    def share(period: int, skipped_rounds: int = 0) -> float:
        later = [times[skipped_rounds * size.period :] for times in steps.values()]
        return rounded(statistics.mean(computing_share(times, period) for times in later))

    return {
        "stepping_seconds": rounded(statistics.median(times[-1] - times[0] for times in steps.values())),
        "step_seconds": rounded(statistics.median(_median_step(times) for times in steps.values())),
        "computing": share(period),
        "computing_all_steps": share(1),
        "computing_all_steps_later": share(1, min(_WARM_ROUNDS, rounds - 2)),
        "computing_as_the_status_says": [rounded(status.computing) for status in watcher.rounds.values()],
        "end_seconds": rounded(ended - max(times[-1] for times in steps.values())),
        "agent_mb": round(watcher.agent_bytes / 1e6),
        "coordinator_mb": round(watcher.coordinator_bytes / 1e6),
        "load": load(),
    }


def computing_share(times: Sequence[float], period: int) -> float:
    """Share of the time from the first step to the last that an agent spent in steps.

    A step that is the first of its round begins one step's time after the one before it, if nothing comes between;
    what it begins later is lost.

    Args:
        times: At which its steps began.
        period: Steps of a round; 1 looks for lost time between all steps (``async``).
    """
    gaps = [after - before for before, after in pairwise(times)]
    step = statistics.median(gaps)
    lost = sum(gap - step for gap in gaps[period - 1 :: period])
    return 1 - lost / sum(gaps)


def _median_step(times: Sequence[float]) -> float:
    return statistics.median(after - before for before, after in pairwise(times))


def _parts(size: Size, times: int = 5) -> dict[str, dict[str, float]]:
    """Wall and processor seconds of what saving is made of: in the agent's way, and beside the next round."""
    with tempfile.TemporaryDirectory() as name:
        update, model, config = make_attack(size, Path(name), 1, 2)
        agent = Agent(Target(update, model, torch.arange(size.images)), config.objective, config.agents, 0)
        storage = Storage(name)
        store = CheckpointStore(storage, {})
        store.claim()
        state = agent.state()
        files = [write_state(storage, state_name(index, 0, "bench"), state, 0) for index in range(times)]
        numbers = iter(range(times))

        def commit() -> None:
            index = next(numbers)
            store.commit(index, {0: files[index]}, {"history": []}, {"images": state["images"]})

        return {
            "copy of the state (the agent waits)": _cost(agent.state, times),
            "file of the state (beside the next round)": _cost(
                lambda: write_state(storage, state_name(times, 0, "bench"), state, 0), times
            ),
            "consensus and manifest (coordinator, beside the next round)": _cost(commit, times),
        }


def _cost(work: Callable[[], object], times: int) -> dict[str, float]:
    wall, processor = [], []
    for _ in range(times):
        began, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return {"wall": rounded(statistics.median(wall)), "processor": rounded(statistics.median(processor))}

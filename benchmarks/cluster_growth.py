"""What grows over thousands of rounds: memory of the coordinator's process and of Ray's control service (GCS)."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradinversion.cluster import reconstruct
from gradinversion.coordinator import Status

from .cluster_attack import TINY, make_attack
from .cluster_machine import load, local_ray, memory, ours, rounded, slope

_PROCESSES = {"coordinator": "ray::CoordinatorProcess", "gcs": "gcs_server", "agent": "ray::AgentProcess"}
# Ray's control service keeps a record of each call, of the newest 100,000 ones.
_WITHOUT_TASK_EVENTS = {"RAY_task_events_report_interval_ms": "0"}


def growth(rounds: int = 2500, agents: int = 2, warm_up: float = 0.2) -> dict[str, Any]:
    """Memory over many fast rounds of tiny images, with checkpoints: as Ray is, and with no record kept of its tasks.

    Args:
        rounds: Of two steps each.
        agents: That take part.
        warm_up: Share of the rounds before the line is fitted.
    """
    variants = {"as shipped": {}, "without task events": _WITHOUT_TASK_EVENTS}
    return {name: _grow(rounds, agents, warm_up, settings) for name, settings in variants.items()}


def _grow(rounds: int, agents: int, warm_up: float, settings: dict[str, str]) -> dict[str, Any]:
    size = replace(TINY, step_seconds=0.0, period=2)
    samples: list[dict[str, float]] = []
    found: dict[str, int] = {}

    def watch(status: Status) -> None:
        if not found and status.round > 0:
            found.update({name: ours(word)[0] for name, word in _PROCESSES.items()})
        if found and status.round < status.rounds:
            row = {name: memory(process) / 1e6 for name, process in found.items()}
            samples.append({"round": status.round} | row)

    with tempfile.TemporaryDirectory() as name, local_ray(settings=settings):
        update, model, config = make_attack(size, Path(name), agents, rounds)
        result = reconstruct(update, model, config, out=Path(name) / "out", watch=watch)
    fitted = [row for row in samples if row["round"] >= warm_up * rounds]
    assert len(fitted) > 2, "the rounds were too few to see anything"
    xs = [row["round"] for row in fitted]
    return {
        "rounds": rounds,
        "seconds_per_round": rounded(result.seconds / rounds),
        "mb_at_the_end": {name: rounded(samples[-1][name]) for name in _PROCESSES},
        "mb_per_1000_rounds": {name: rounded(1000 * slope(xs, [row[name] for row in fitted])) for name in _PROCESSES},
        "history_rows": len(result.history),
        "samples": [
            {name: round(value, 2) for name, value in row.items()} for row in samples[:: -(-len(samples) // 50)]
        ],
        "load": load(),
    }

"""How long a lost agent is away: its process is killed, or its whole node."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from gradinversion.cluster import reconstruct, stop
from gradinversion.coordinator import Status
from ray.cluster_utils import Cluster

from .cluster_attack import Size, Trace, make_attack, read_traces
from .cluster_machine import MIB, descendants, load, local_ray, parent, rounded, started

_SHIPPED = Path(__file__).parents[1] / "cluster" / "gpu.yaml"
_AGENTS = 2
# Enough that a run never ends before its faults are over; `stop` ends it.
_ROUNDS = 1000


@dataclass
class _Fault:
    seed: int
    process: int
    """That was lost."""
    time: float


class _Saboteur:
    """Kills, waits until the agent makes steps again and has a checkpoint to go back to, and kills again.

    Args:
        traces: Folder of the agents' traces.
        kill: Ends the process of an agent, and maybe more.
        repeats: Faults in all.
        calm_seconds: Between an agent's return and the next fault, at least.
        end: Called when all is measured.
    """

    def __init__(
        self,
        traces: Path,
        kill: Callable[[int], None],
        repeats: int,
        calm_seconds: float,
        end: Callable[[], None],
    ) -> None:
        self._traces, self._kill, self._repeats, self._end = traces, kill, repeats, end
        self._calm_seconds = calm_seconds
        self._fault: _Fault | None = None
        self._saved = -1
        self.found: list[dict[str, float]] = []

    def __call__(self, status: Status) -> None:
        """See `Watch`."""
        rows = {seed: [row for row in found if row.what == "step"] for seed, found in read_traces(self._traces).items()}
        if self._fault is not None:
            self._look_for(self._fault)
        elif len(self.found) == self._repeats:
            self._end()
            self._repeats = -1
        elif self._may_strike(status, rows):
            seed = len(self.found) % _AGENTS
            process = rows[seed][-1].process
            self._fault, self._saved = _Fault(seed, process, time.time()), status.saved_round
            self._kill(process)

    def _may_strike(self, status: Status, rows: dict[int, list[Trace]]) -> bool:
        """All agents are at work for a while, and there is a checkpoint since the last fault."""
        if self._repeats < 0 or len(rows) < _AGENTS or status.saved_round <= self._saved:
            return False
        since = max(next(row.time for row in found if row.process == found[-1].process) for found in rows.values())
        return time.time() - since > self._calm_seconds

    def _look_for(self, fault: _Fault) -> None:
        """The first step of a new process."""
        rows = [row for row in read_traces(self._traces)[fault.seed] if row.time > fault.time]
        rows = [row for row in rows if row.process != fault.process]
        first = {what: next((row for row in rows if row.what == what), None) for what in ("target", "step")}
        target, step = first["target"], first["step"]
        if step is None:
            return
        assert target is not None
        self._fault = None
        self.found.append(
            {
                # Ray may have had the process ready, before it was needed.
                "process": rounded(started(step.process) - fault.time),
                "target": rounded(target.time - fault.time),
                "step": rounded(step.time - fault.time),
            }
        )


def recovery(size: Size, agents: int = 6, nodes: int = 3, calm_seconds: float = 3.0) -> dict[str, Any]:
    """Seconds from a killed process, and from a killed node, to the agent's next step.

    Args:
        size: Of the batch.
        agents: Processes to kill, one after the other.
        nodes: Nodes to kill.
        calm_seconds: Between two faults, at least.
    """
    imports = "import time; t = time.time(); import gradinversion.cluster.agent_actor; print(time.time() - t)"
    run = [sys.executable, "-c", imports]
    took = [float(subprocess.run(run, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    return {
        "killed process": _killed_processes(size, agents, calm_seconds),
        "killed node": _killed_nodes(size, nodes, calm_seconds),
        "import_seconds": rounded(statistics.median(took)),
    }


def _killed_processes(size: Size, repeats: int, calm_seconds: float) -> dict[str, Any]:
    with local_ray(size.object_store(_AGENTS)):
        return _sabotage(size, lambda process: os.kill(process, signal.SIGKILL), repeats, calm_seconds)


def _killed_nodes(size: Size, repeats: int, calm_seconds: float) -> dict[str, Any]:
    settings = health_settings(_SHIPPED.read_text(encoding="utf-8"))
    with _cluster(settings, max(size.object_store(_AGENTS), 100 * MIB)) as (cluster, node_options):

        def kill(process: int) -> None:
            _kill_node(process)
            cluster.add_node(**node_options)

        return _sabotage(size, kill, repeats, calm_seconds) | {"settings": settings}


def _sabotage(size: Size, kill: Callable[[int], None], repeats: int, calm_seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        traces, out = Path(name) / "traces", Path(name) / "out"
        traces.mkdir()
        update, model, config = make_attack(size, traces, _AGENTS, _ROUNDS)
        saboteur = _Saboteur(traces, kill, repeats, calm_seconds, lambda: stop(out))
        reconstruct(update, model, config, out=out, watch=saboteur)
    return {
        "median": {key: rounded(statistics.median(row[key] for row in saboteur.found)) for key in saboteur.found[0]},
        "worst": max(row["step"] for row in saboteur.found),
        "runs": saboteur.found,
        "load": load(),
    }


def health_settings(text: str) -> dict[str, str]:
    """The settings of Ray's health checks in a cluster file."""
    return dict(re.findall(r"\b(RAY_health_check_\w+)=(\d+)", text))


@contextlib.contextmanager
def _cluster(settings: dict[str, str], object_store: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A head without agents and two worker nodes, each with room for all agents."""
    before = dict(os.environ)
    os.environ.update(settings)
    node_options: dict[str, Any] = {"num_cpus": _AGENTS, "object_store_memory": object_store}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": object_store})
    try:
        for _ in range(2):
            cluster.add_node(**node_options)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster, node_options
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def _kill_node(process: int) -> None:
    """The raylet that a process belongs to, and all that it started: what is left of a machine without power."""
    raylet = parent(process)
    for victim in [raylet, *descendants(raylet)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)

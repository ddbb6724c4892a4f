"""Processes and nodes of a run on a cluster killed at random; its images are those of a run that nothing happened to.

    python -m benchmarks.cluster_kills --kills 10 --seed 1     # into benchmarks/results/fault_kills.json

The cluster is Ray's own for tests: a head without CPUs and two worker nodes on this machine, each with room for all
agents. The real command joins it. A view that was killed is begun again with ``resume=true``, and looks on; a node that
was killed has another in its place; where everything was killed, a new cluster is made first.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ray.cluster_utils import Cluster

from .cluster_machine import descendants, ours, parent
from .fault_kills import (
    AGENT,
    COORDINATOR,
    LONGEST_SECONDS,
    LOOK_SECONDS,
    Command,
    Found,
    keep,
    saved_round,
    table,
)

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("an agent", "the coordinator", "both", "the view", "a node", "everything")
_WORDS = ("agents.count=2", "agents.iterations=800", "coordinator.period=50", "coordinator.start=0.5")
_PLACES = ("agents.cpus=1", "agents.gpus=0", "agents.threads=1", "agents.patience=1000000")
_STORE_BYTES = 80 * 2**20
# A killed node is noticed after about two seconds.
_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 4,
}


class Machines:
    """A cluster of this process's own, whose nodes can be killed."""

    def __init__(self) -> None:
        # Short: a socket's path has at most 107 letters.
        self._folder = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
        self.make()

    def make(self) -> None:
        """Start all of it."""
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": self._folder.name}
        head |= {"object_store_memory": _STORE_BYTES, "_system_config": _HEALTH_CHECKS}
        # Other runs on this machine must not find this cluster.
        with patch("ray._private.utils.write_ray_address"):
            self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.add()
        self.add()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> None:
        """A worker node."""
        self._cluster.add_node(num_cpus=2, object_store_memory=_STORE_BYTES, temp_dir=self._folder.name)

    def kill_node_of(self, process: int) -> None:
        """As a machine that loses its power, and another in its place."""
        raylet = parent(process)
        (node,) = [one for one in self._cluster.worker_nodes if _raylet(one) == raylet]
        kill(raylet, *descendants(raylet))
        self._cluster.remove_node(node, allow_graceful=False)
        self.add()

    def kill(self) -> None:
        """All of it at once."""
        kill(*descendants(os.getpid()))
        with contextlib.suppress(Exception):  # it finds nothing as it left it
            self._cluster.shutdown()

    def close(self) -> None:
        """End all of it in order."""
        self._cluster.shutdown()
        self._folder.cleanup()


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def kill(*processes: int) -> None:
    """Those that are still there."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


class Run(Command):
    """One on the cluster."""

    def __init__(self, folder: Path, machines: Machines) -> None:
        self._machines = machines
        super().__init__(folder, (*_WORDS, *_PLACES), machines.address, apart=False)

    def begin(self, *words: str) -> None:
        self._address = self._machines.address  # of a new cluster, where everything was killed
        super().begin(*words)

    def kill(self, kind: str, chance: random.Random) -> bool:
        """Kill what is named; False where it is not there now."""
        agents, coordinators = ours(AGENT), ours(COORDINATOR)
        if kind == "everything":
            self._machines.kill()
            self._command.wait()
            self._machines.make()
            self.begin("resume=true")
        elif kind == "the view":
            kill(self._command.pid)
            self._command.wait()
            self.begin("resume=true")
        elif kind == "the coordinator" and coordinators:
            kill(*coordinators)
        elif not agents:
            return False
        elif kind == "a node":
            self._machines.kill_node_of(chance.choice(agents))
        elif kind == "an agent":
            kill(chance.choice(agents))
        elif not coordinators:
            return False
        else:
            kill(agents[0], *coordinators)
        return True

    def finish(self) -> int:
        """The exit status."""
        try:
            return self._command.wait(LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            kill(self._command.pid)
            return self._command.wait()


def run_with_kills(run: Run, whole: bytes, kills: int, chance: random.Random, found: Found) -> None:
    """So many kills of a run, and what came of it.

    Args:
        run: Just begun.
        whole: The images of an undisturbed run.
        kills: One of each kind at most; fewer where the run ends before.
        chance: Of kinds and moments.
        found: What is known so far.
    """
    # In an order by chance, so that few kills are of many kinds.
    for kind in chance.sample(KINDS, len(KINDS))[:kills]:
        run.wait_for_a_round(saved_round(run.out))
        time.sleep(chance.uniform(0, 0.5))
        if run.ended:
            break
        if run.kill(kind, chance):
            found.kills[kind] = found.kills.get(kind, 0) + 1
    run.judge(run.finish(), whole, found)
    until = time.monotonic() + 60
    while (left := [*ours(AGENT), *ours(COORDINATOR)]) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    found.left += len(left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="no run is begun later than this")
    given = parser.parse_args()
    logging.getLogger("ray").setLevel(logging.ERROR)
    found, chance, began = Found(place="cluster", open_ports=None), random.Random(given.seed), time.monotonic()
    parts: list[Found] = []
    machines = Machines()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "whole").mkdir()
        undisturbed = Run(Path(folder) / "whole", machines)
        if undisturbed.finish() != 0:
            raise SystemExit(undisturbed.last_words)
        while (left := given.kills - sum(found.kills.values())) > 0 and time.monotonic() - began < given.seconds:
            place = Path(folder) / f"run-{found.runs}"
            place.mkdir()
            run_with_kills(Run(place, machines), undisturbed.images, left, chance, found)
            print(f"{sum(found.kills.values())} kills, {found.equal} of {found.runs} runs equal", flush=True)
            found.seconds = round(time.monotonic() - began, 1)
            parts = keep(f"cluster {given.seed}", found)
    machines.close()
    print(*found.problems, sep="\n")
    print(table(parts))


if __name__ == "__main__":
    main()

"""A Ray cluster of several nodes on this machine, which can be killed, frozen and drained."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from gradinversion.capture import CapturedUpdate
from gradinversion.cluster import reconstruct, stop
from gradinversion.cluster.launch import run_name
from gradinversion.cluster.ray_group import NAMESPACE
from gradinversion.coordinator import AttackConfig, Reconstruction, Status, Storage
from ray.cluster_utils import Cluster
from ray.exceptions import RayError
from torch import nn

OBJECT_STORE_BYTES = 80 * 2**20
# A killed node is noticed after about 2 s, a silent one after about 6 s. Lower numbers take a busy node for a dead one.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 4,
}
# A generous number of looks at a condition that always comes true.
TRIES = 6000
_LOOK_SECONDS = 0.05


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """What the condition gave, once that is true."""
    for _ in range(TRIES):
        found = condition()
        if found:
            return found
        time.sleep(_LOOK_SECONDS)
    raise AssertionError(f"it never came true that {what}")


def descendants(process: int) -> list[int]:
    """The process and all below it, without those that have ended and were not noticed by their parent."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
                if state != "Z":
                    children.setdefault(int(parent), []).append(int(entry.name))
    found, ahead = [], [process]
    while ahead:
        found.append(ahead.pop())
        ahead += children.get(found[-1], [])
    return found


def tell(processes: list[int], number: int) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


class Nodes:
    """A head without CPUs, as in ``gpu.yaml``, and workers that come and go; this process is connected to the head."""

    def __init__(self) -> None:
        ray.shutdown()  # another module's
        # Of its own, and short: a socket's path has at most 107 letters.
        self._folder = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": self._folder.name}
        head |= {"object_store_memory": OBJECT_STORE_BYTES, "_system_config": HEALTH_CHECKS}
        # Other runs on this machine must not find this cluster.
        with patch("ray._private.utils.write_ray_address"):
            self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        ray.init(self._cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        self._frozen: dict[Any, list[int]] = {}

    def add(self, cpus: float = 1, gpus: float = 0) -> Any:
        """A new worker node. (A GPU need not exist: Ray believes what it is told.)"""
        return self._cluster.add_node(
            num_cpus=cpus, num_gpus=gpus, object_store_memory=OBJECT_STORE_BYTES, temp_dir=self._folder.name
        )

    @property
    def head(self) -> str:
        """Its id."""
        identity: str = self._cluster.head_node.node_id
        return identity

    def workers(self) -> list[Any]:
        """All worker nodes."""
        return list(self._cluster.worker_nodes)

    def by_id(self, identity: str) -> Any:
        """The worker node of this id."""
        (node,) = [node for node in self._cluster.worker_nodes if node.node_id == identity]
        return node

    def kill(self, node: Any) -> None:
        """As a machine that loses its power."""
        tell(descendants(_raylet(node)), signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)
        self._frozen.pop(node, None)

    def freeze(self, node: Any) -> None:
        """As a machine that the network does not reach: nothing of it moves."""
        self._frozen[node] = descendants(_raylet(node))
        tell(self._frozen[node], signal.SIGSTOP)

    def thaw(self, node: Any, workers_only: bool = False) -> None:
        """All of a frozen node moves again; or all but its raylet, which ends when it hears that it is dead."""
        raylet = _raylet(node)
        tell([process for process in self._frozen[node] if process != raylet or not workers_only], signal.SIGCONT)

    def drain(self, node: Any, seconds: int) -> None:
        """A preemption notice, as the cluster files give it."""
        words = ["drain-node", "--address", self._cluster.address, "--node-id", node.node_id]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot interruption"]
        words += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *words], check=True, capture_output=True)

    def refill(self, count: int) -> None:
        """Have so many workers with one CPU."""
        for _ in range(count - len(self._cluster.worker_nodes)):
            self.add()
        for node in self.workers()[count:]:
            self.kill(node)

    def close(self) -> None:
        """End all of it."""
        ray.shutdown()
        for node in list(self._frozen):
            self.kill(node)
        self._cluster.shutdown()
        self._folder.cleanup()


@dataclass(frozen=True)
class Place:
    """Where an actor lives."""

    node: str
    """Id."""
    process: int


class Run:
    """An attack under way, looked at from the test's own thread."""

    def __init__(self, update: CapturedUpdate, model: nn.Module, config: AttackConfig, out: Path) -> None:
        self.out, self.config = out, config
        self._name = run_name(Storage(out))
        thread = ThreadPoolExecutor(1)
        self._end = thread.submit(reconstruct, update, model, config, out=out)
        thread.shutdown(wait=False)

    def place(self, seed: int | None = None) -> Place | None:
        """Of the actor of a seed, or of the coordinator; None while it has none."""
        name = self._name + ("" if seed is None else f"-seed-{seed}")
        for actor in ray._private.state.actors(actor_state_name="ALIVE").values():
            if actor["Name"] == name:
                return Place(actor["Address"]["NodeID"], actor["Pid"])
        return None

    def place_other_than(self, before: Place, seed: int | None = None) -> Place:
        """Where it lives once it was made again."""

        def look() -> Place | None:
            now = self.place(seed)
            return now if now != before else None

        found: Place = wait_until(look, f"the actor that was at {before} lives elsewhere")
        return found

    def coordinator(self) -> Any:
        """Its handle, once there is one."""

        def look() -> Any:
            with contextlib.suppress(ValueError):
                return ray.get_actor(self._name, NAMESPACE)

        return wait_until(look, "there is a coordinator")

    def until(self, condition: Callable[[Status], bool], what: str) -> Status:
        """The first status for which this is true."""

        def look() -> Status | None:
            if self._end.done():
                raise AssertionError(f"the run ended before {what}: {self._end.exception() or self._end.result()}")
            try:
                status: Status | None = ray.get(self.coordinator().status.remote(), timeout=1)
            except RayError:
                return None  # it is away, or frozen
            return status if status is not None and condition(status) else None

        found: Status = wait_until(look, what)
        return found

    def until_message(self, text: str) -> Status:
        """The first status with a message that has these words."""
        return self.until(lambda status: any(text in event.message for event in status.events), f"it says {text!r}")

    def until_amid(self, position: int, round: int) -> Place:
        """Where a seed lives, once it is in the middle of a round (0 is the first)."""
        period = self.config.coordinator.period
        first, last = round * period + period // 8, round * period + period // 2
        self.until(lambda status: first <= status.seeds[position].step <= last, f"round {round} is half done")
        place = self.place(self.config.seed + position)
        assert place is not None
        return place

    def stop(self) -> Reconstruction:
        """What there is after the current round."""
        stop(self.out)
        return self.result()

    def result(self) -> Reconstruction:
        """What there is at the end, which is waited for."""
        wait_until(self._end.done, "the run ends")
        return self._end.result()

    def abandon(self) -> None:
        """Make room for the next test, also where this one failed."""
        while not self._end.done():
            for actor in ray.util.list_named_actors(all_namespaces=True):
                if actor["name"].startswith(self._name):
                    with contextlib.suppress(ValueError):
                        ray.kill(ray.get_actor(actor["name"], actor["namespace"]))
            time.sleep(_LOOK_SECONDS)


Begin = Callable[[AttackConfig], Run]
"""Begins a run that is over after the test, whatever happens."""


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)

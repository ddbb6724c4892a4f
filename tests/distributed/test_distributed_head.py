"""The head is killed with Redis behind it, and started again: the run goes on and ends as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import Outcome
from gradinversion.coordinator import Reconstruction, Storage, read_result
from ray import shutdown

from .nodes import OBJECT_STORE_BYTES, descendants, tell, wait_until

ATTACK: tuple[str, ...] = (
    "client.batch_size=2",
    "agents.count=2",
    "agents.cpus=1",
    "agents.gpus=0",
    "agents.threads=1",
)
ATTACK += ("agents.iterations=1200", "agents.patience=100000", "coordinator.period=100", "coordinator.start=0.3")
ATTACK += ("audit.controls=constant_image", "peeling.enabled=false")
# A busy machine may take a while to start a head.
SLOW_SECONDS = 600


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> None:
    """This process joins no Ray: it would end with the head."""
    shutdown()


def obstacle() -> str | None:
    """Why there is no Redis here, in one sentence; None where there is one."""
    if not Path("/proc/self/stat").exists():
        return "finds a node's processes through /proc"
    if shutil.which("redis-server"):
        return None
    # Only where the machine exists for tests alone.
    if os.environ.get("CI") and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet: dict[str, Any] = {
            "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            "capture_output": True,
            "check": False,
        }
        subprocess.run(["apt-get", "update"], **quiet)
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", "redis-server"], **quiet)
    return None if shutil.which("redis-server") else "missing redis-server (Debian: apt install redis-server)"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Ray:
    """A head and a worker as ``ray start`` makes them, with Redis behind the head."""

    folder: Path
    redis: int
    port: int
    token: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Of each process; the address in it keeps a run from any other Ray on this machine."""
        chosen = {"RAY_ADDRESS": f"127.0.0.1:{self.port}", "PYTHONUNBUFFERED": "1"}
        chosen |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        chosen["RAY_gcs_rpc_server_reconnect_timeout_s"] = "600"
        return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | chosen

    def _begin(self, name: str, words: list[str], environment: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def start_redis(self) -> None:
        """On loopback, keeping nothing."""
        words = ["redis-server", "--port", str(self.redis), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._begin("redis", [*words, "--dir", str(self.folder)], self.environment)

    def start(self, name: str, *words: str) -> None:
        """A node; returns when it is up."""
        log = self.folder / f"{name}.log"
        before = log.read_text().count("Ray runtime started") if log.exists() else 0
        environment = self.environment
        if "--head" in words:
            del environment["RAY_ADDRESS"]
            environment |= {"RAY_REDIS_ADDRESS": f"127.0.0.1:{self.redis}", "RAY_external_storage_namespace": "test"}
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        ray += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
        self._begin(name, [*ray, *words], environment)
        wait_until(lambda: log.read_text().count("Ray runtime started") > before, f"{name} is up, see {log}")

    def start_head(self) -> None:
        """The same one each time: same address, same tables."""
        # As `ray stop` does, which would end every Ray on this machine: Ray refuses to start where one seems to be.
        (self.folder / "ray/ray_current_cluster").unlink(missing_ok=True)
        self.start(
            "head",
            *("--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false"),
            f"--temp-dir={self.folder}/ray",
        )

    def start_worker(self) -> None:
        """With room for two agents."""
        self.start("worker", f"--address=127.0.0.1:{self.port}", "--num-cpus=2")

    def kill(self, name: str) -> None:
        """With all that it started."""
        process = self.processes.pop(name)
        tell(descendants(process.pid), signal.SIGKILL)
        process.wait()

    def begin_run(self, *words: str) -> None:
        """``run.py`` with these words."""
        self._begin("run", [sys.executable, "-m", "gradinversion.run", *words], self.environment)

    def wait_for_run(self) -> str:
        """What it said; its status must be 0."""
        status = self.processes.pop("run").wait(timeout=SLOW_SECONDS)
        said = (self.folder / "run.log").read_text()
        assert status == 0, said
        return said


@pytest.fixture
def ray_with_redis() -> Iterator[Ray]:
    if reason := obstacle():
        pytest.skip(reason)
    # A short name: a socket's path has at most 107 letters.
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    ray = Ray(folder, free_port(), free_port(), secrets.token_hex(32))
    try:
        ray.start_redis()
        ray.start_head()
        ray.start_worker()
        yield ray
    finally:
        for name in list(ray.processes):
            ray.kill(name)
        shutil.rmtree(folder, ignore_errors=True)


def result_in(out: Path) -> Reconstruction:
    result = read_result(Storage(out))
    assert result is not None
    return result


@pytest.mark.slow
def test_the_head_is_killed_and_started_again(ray_with_redis: Ray, tmp_path: Path) -> None:
    ray, out = ray_with_redis, tmp_path / "out"
    ray.begin_run(f"out={tmp_path}/whole", *ATTACK)
    ray.wait_for_run()
    ray.begin_run(f"out={out}", *ATTACK)
    wait_until(lambda: list(out.glob("checkpoints/round-*/manifest.json")), "a round is saved")
    ray.kill("head")
    with contextlib.suppress(KeyError):
        ray.kill("run")  # whoever looked on goes with the head's node
    assert read_result(Storage(out)) is None, "the head was killed in the middle of the run"
    ray.start_head()
    ray.begin_run("watch", f"out={out}")
    said = ray.wait_for_run()
    assert "Report:" in said
    healed, whole = result_in(out), result_in(tmp_path / "whole")
    assert healed.outcome is Outcome.FINISHED
    assert torch.equal(healed.images, whole.images)
    assert torch.equal(healed.candidate_images, whole.candidate_images)

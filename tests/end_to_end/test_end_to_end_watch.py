"""The real command on a cluster that stays: whoever began a run may go, and others look on, end it, and report."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("client.batch_size=1", "client.image_size=16")
WORDS = (*SMALL, "agents.count=2", "agents.iterations=200", "coordinator.period=25", "coordinator.start=0.5")
ROUNDS = 8
# A cluster of its own in a process of its own, until its input is closed.
HEAD = """
import logging, sys, ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
         object_store_memory=100 * 2**20)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
# Ray's own clusters ask for a token; without these words whoever joins by an address has none.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
MARK = "GRADINVERSION_TEST_CLUSTER"
# A condition is looked at so often before it is taken never to come true: some minutes.
TRIES = 12_000
LOOK_SECONDS = 0.02

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(TRIES):
        if condition():
            return
        time.sleep(LOOK_SECONDS)
    raise AssertionError(f"never: {what}")


class Cluster:
    """Ray on this machine, in processes of its own; all of them carry a mark in their environment."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._mark = secrets.token_hex(8)
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self._head = subprocess.Popen(
            [sys.executable, "-c", HEAD],
            env=environment | TOKEN | {MARK: self._mark},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._output.readline().strip()
        assert self.address, "the cluster did not start"

    @property
    def _output(self) -> IO[str]:
        assert self._head.stdout is not None
        return self._head.stdout

    def environment(self) -> dict[str, str]:
        # No colour codes in what is read back.
        return os.environ | TOKEN | {"RAY_ADDRESS": self.address, "NO_COLOR": "1"}

    def processes(self, title: str = "") -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                marked = entry.name.isdigit() and f"{MARK}={self._mark}\0".encode() in (entry / "environ").read_bytes()
                if marked and (entry / "cmdline").read_bytes().startswith(title.encode()):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def agents(self) -> list[int]:
        return self.processes("ray::AgentProcess")

    def kill(self) -> None:
        """All of it, as if the machine had lost its power."""
        while found := self.processes():
            for process in found:
                # One may end by itself once those that it belongs to are gone.
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._head.poll()
        self._close()

    def shut_down(self) -> None:
        assert self._head.stdin is not None
        self._head.stdin.close()
        self._close()

    def _close(self) -> None:
        self._head.wait()
        self._output.close()
        assert self._head.stdin is not None
        self._head.stdin.close()


class Held:
    """An agent that stands still: its run stays in the round that it is in until the agent goes on."""

    def __init__(self, cluster: Cluster) -> None:
        self._agent = cluster.agents()[0]
        os.kill(self._agent, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._agent, signal.SIGCONT)


def command(verb: str, out: Path, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *([verb] if verb else []), f"out={out}", *words]


def run(cluster: Cluster, verb: str, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(verb, out, *words),
        cwd=out.parent,
        env=cluster.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


class Viewer:
    """A command that goes on while the test looks at what it has printed."""

    def __init__(self, cluster: Cluster, verb: str, out: Path, *words: str) -> None:
        self._log = out.parent / f"{out.name}-{verb or 'attack'}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command(verb, out, *words),
                cwd=out.parent,
                env=cluster.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A suite that was started in the background ignores the interrupt, and its children would inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(lambda: condition() or self.process.poll() is not None, what)
        assert condition(), f"the command ended before: {what}; it printed: {self.printed}"


def begin(cluster: Cluster, out: Path) -> tuple[Viewer, Held]:
    """A run that stands still after its first rounds, of which at least one is saved."""
    driver = Viewer(cluster, "", out, *WORDS)
    driver.wait_for(lambda: bool(list(out.glob("checkpoints/round-*/manifest.json"))), "a round is saved")
    held = Held(cluster)
    assert not (out / "checkpoints" / "result.json").exists(), "the run was over before it could be held"
    return driver, held


def assert_equal_bytes(out: Path, undisturbed: Path) -> None:
    for name in ("reconstruction.safetensors", "reconstruction.png"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.shut_down()


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = run(cluster, "", out, *WORDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((out / "report.json").read_text())["rounds"] == ROUNDS
    return out


def test_a_killed_driver_is_not_missed_and_watch_writes_the_report(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    driver, held = begin(cluster, out)
    driver.process.kill()
    assert driver.process.wait() == -signal.SIGKILL
    settings = (out / "config.yaml").read_bytes()
    second = run(cluster, "", out, *WORDS, "seed=7")
    assert second.returncode == 2
    assert "under way" in second.stderr
    assert "Traceback" not in second.stderr
    assert (out / "config.yaml").read_bytes() == settings, "a command that was refused changed the run's settings"
    viewer = Viewer(cluster, "watch", out)
    viewer.wait_for(lambda: "optimising (2 agents)" in viewer.printed, "progress is shown")
    assert not (out / "report.json").exists()
    held.go_on()
    assert viewer.process.wait() == 0, viewer.printed
    assert f"round {ROUNDS}/{ROUNDS}" in viewer.printed
    assert f"Report: {out}" in viewer.printed
    assert json.loads((out / "report.json").read_text())["outcome"] == "all steps done"
    assert_equal_bytes(out, undisturbed)


def test_an_interrupted_driver_says_how_to_look_on_and_a_stopped_run_is_reported_and_resumed(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    driver, held = begin(cluster, out)
    os.kill(driver.process.pid, signal.SIGINT)
    assert driver.process.wait() == 130, driver.printed
    assert f"run.py watch out={out}" in driver.printed
    assert f"run.py stop out={out}" in driver.printed
    assert "Traceback" not in driver.printed
    ended = run(cluster, "stop", out)
    assert ended.returncode == 0, ended.stderr
    held.go_on()
    wait_until((out / "checkpoints" / "result.json").exists, "the stopped run leaves a result")
    reported = run(cluster, "report", out)
    assert reported.returncode == 0, reported.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["outcome"].startswith("interrupted")
    assert 1 <= report["rounds"] < ROUNDS
    resumed = run(cluster, "", out, *WORDS, "resume=true")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "Continued after round" in resumed.stdout
    assert json.loads((out / "report.json").read_text())["outcome"] == "all steps done"
    assert_equal_bytes(out, undisturbed)


def test_a_folder_without_a_run_is_refused_in_words(cluster: Cluster, tmp_path: Path) -> None:
    for verb in ("watch", "stop", "report"):
        refused = run(cluster, verb, tmp_path / "nothing")
        assert refused.returncode == 2
        assert "nothing" in refused.stderr
        assert "run" in refused.stderr.replace(str(tmp_path), "").lower(), refused.stderr
        assert "Traceback" not in refused.stderr


def test_the_whole_cluster_is_killed_and_a_new_one_goes_on(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    """Last in this module: the cluster is another one afterwards."""
    out = tmp_path / "out"
    driver, _ = begin(cluster, out)
    driver.process.kill()
    driver.process.wait()
    cluster.kill()
    assert not (out / "report.json").exists()
    cluster.start()
    resumed = run(cluster, "", out, *WORDS, "resume=true")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "Continued after round" in resumed.stdout
    assert_equal_bytes(out, undisturbed)

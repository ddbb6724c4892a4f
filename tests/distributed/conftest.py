"""A local Ray for all modules that bring no nodes of their own, one small attack, and what can go wrong with it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch
from gradinversion.capture import CapturedUpdate, capture_gradient
from gradinversion.cluster import launch, reconstruct
from gradinversion.coordinator import AttackConfig, Reconstruction
from torch import nn

from .nodes import Begin, Nodes, Run

# A condition is looked at so often before it is taken never to come true: some minutes.
TRIES = 12_000
_LOOK_SECONDS = 0.02


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> None:
    """That of the module before, where it is still there: to start Ray and its idle workers costs seconds of a core."""
    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 * 2**20,
        )


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ray ends with the last test of this folder: the others start their own."""
    if nextitem is None or nextitem.path.parent != item.path.parent:
        ray.shutdown()


@pytest.fixture(autouse=True)
def _looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks on sees a short run in its middle too."""
    monkeypatch.setattr(launch, "_LOOK_SECONDS", 0.1)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 4)).eval()


@pytest.fixture(scope="module")
def update(model: nn.Module) -> CapturedUpdate:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return capture_gradient(model, images, torch.tensor([0, 3]), normalisation=((0.5,) * 3, (0.25,) * 3))


@pytest.fixture(scope="session")
def known() -> dict[AttackConfig, Reconstruction]:
    """What undisturbed runs of the small attack gave, in whichever module they were made."""
    return {}


@pytest.fixture
def undisturbed(
    known: dict[AttackConfig, Reconstruction], update: CapturedUpdate, model: nn.Module
) -> Callable[[AttackConfig], Reconstruction]:
    """The end of a run without faults."""

    def run(config: AttackConfig) -> Reconstruction:
        if config not in known:
            known[config] = reconstruct(update, model, config)
        return known[config]

    return run


def wait_until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(TRIES):
        if condition():
            return
        time.sleep(_LOOK_SECONDS)
    raise AssertionError(f"never: {what}")


class Processes:
    """Those of this test's Ray: their line of parents leads to the test."""

    wait_until = staticmethod(wait_until)

    def agents(self) -> list[int]:
        return self._titled("ray::AgentProcess")

    def coordinators(self) -> list[int]:
        return self._titled("ray::CoordinatorProcess")

    def kill(self, *processes: int) -> None:
        """All at one moment; returns when they are gone."""
        for process in processes:
            os.kill(process, signal.SIGKILL)
        wait_until(lambda: not any(map(self.alive, processes)), f"{processes} are gone")

    def stop(self, process: int) -> None:
        """Returns when it stands still."""
        os.kill(process, signal.SIGSTOP)
        wait_until(lambda: self._stat(process)[:1] in (["T"], []), f"{process} stands still")

    def go_on(self, process: int) -> None:
        os.kill(process, signal.SIGCONT)

    def alive(self, process: int) -> bool:
        return self._stat(process)[:1] not in (["Z"], [])

    def _titled(self, title: str) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                titled = entry.name.isdigit() and (entry / "cmdline").read_text().startswith(title)
            except OSError:
                continue
            if titled and self._is_ours(int(entry.name)):
                found.append(int(entry.name))
        return sorted(found)

    def _is_ours(self, process: int) -> bool:
        while process > 1 and process != os.getpid():
            fields = self._stat(process)
            process = int(fields[1]) if fields else 0
        return process == os.getpid()

    @staticmethod
    def _stat(process: int) -> list[str]:
        """State, parent and so on; nothing for a process that is gone."""
        try:
            return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return []


@pytest.fixture(scope="session")
def processes() -> Processes:
    if not Path("/proc/self/stat").exists():
        pytest.skip("finds processes through /proc")
    return Processes()


class CheckpointSwitch:
    """Takes the folder of a run's checkpoints away at once, and brings it back as it was.

    The folder of the run is a link, and a link to another place replaces it atomically: there a file lies where the
    checkpoints should be. Permissions would not stop root.
    """

    def __init__(self, out: Path) -> None:
        self._link, self._whole, self._broken = out, out.with_name("whole"), out.with_name("broken")
        self._whole.mkdir()
        self._broken.mkdir()
        (self._broken / "checkpoints").write_text("a file where the folder should be")
        self.on()

    def on(self) -> None:
        self._point_to(self._whole)

    def off(self) -> None:
        # What lies beside the checkpoints is there all the same.
        shutil.copy(self._whole / "metrics.jsonl", self._broken)
        self._point_to(self._broken)

    def _point_to(self, place: Path) -> None:
        link = self._link.with_name("link")
        link.symlink_to(place)
        os.replace(link, self._link)


@pytest.fixture
def begin(nodes: Nodes, update: CapturedUpdate, model: nn.Module, tmp_path: Path) -> Iterator[Begin]:
    """Begins runs on the module's ``nodes``; those that are still under way at the end of a test are ended."""
    runs: list[Run] = []

    def begin(config: AttackConfig) -> Run:
        runs.append(Run(update, model, config, tmp_path))
        return runs[-1]

    yield begin
    for run in runs:
        run.abandon()


@pytest.fixture
def switch(tmp_path: Path) -> CheckpointSwitch:
    """Of a run with ``out=tmp_path / "out"``."""
    return CheckpointSwitch(tmp_path / "out")

"""An attack that costs time and no arithmetic: its agents sleep in every step, as if a GPU computed for them.

Everything else is the real thing: coordinator, agents, actors, images of any size, storage. The sleep is in the model,
so that nothing in the package has to know of it.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from gradinversion.agents import AgentsConfig, ObjectiveConfig
from gradinversion.capture import CapturedUpdate, capture_gradient
from gradinversion.coordinator import AttackConfig, CoordinatorConfig, Mode
from gradinversion.peeling import PeelingConfig
from gradinversion.registration import RegistrationConfig
from torch import Tensor, nn

# `AgentLoop` names its thread so; other threads and processes neither sleep nor leave a trace.
_AGENT_THREAD = "seed "
_HALF = (0.5, 0.5, 0.5)


class SleepingModel(nn.Module):
    """A linear layer on the corner pixels of each image; in an agent every forward pass sleeps and leaves a trace.

    Args:
        classes: As many as images, so that all labels differ.
        step_seconds: Of sleep. What Adam costs on that many pixels comes on top.
        folder: For the traces, one file for each process.
    """

    def __init__(self, classes: int, step_seconds: float, folder: Path) -> None:
        super().__init__()
        self.linear = nn.Linear(3, classes)
        self.step_seconds, self.folder = step_seconds, str(folder)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        if self._leave_trace("step"):
            time.sleep(self.step_seconds)
        return self.linear(images[:, :, :1, :1].mean((2, 3)))

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._leave_trace("target")

    def _leave_trace(self, what: str) -> bool:
        name = threading.current_thread().name
        if not name.startswith(_AGENT_THREAD):
            return False
        seed = name.removeprefix(_AGENT_THREAD)
        with open(f"{self.folder}/{seed}-{os.getpid()}.txt", "a", encoding="ascii") as file:
            file.write(f"{what} {time.time():.6f}\n")
        return True


@dataclass(frozen=True)
class Trace:
    """One thing that an agent's process did: a ``step`` begun, or the ``target`` received."""

    what: str
    time: float
    """Unix time."""
    process: int


def read_traces(folder: Path) -> dict[int, list[Trace]]:
    """What the agents of each seed did, in order of time."""
    found: dict[int, list[Trace]] = {}
    for path in folder.glob("*-*.txt"):
        seed, process = map(int, path.stem.split("-"))
        # The last line may be half written.
        for line in path.read_text(encoding="ascii").split("\n")[:-1]:
            what, when = line.split()
            found.setdefault(seed, []).append(Trace(what, float(when), int(process)))
    return {seed: sorted(rows, key=lambda row: row.time) for seed, rows in sorted(found.items())}


def step_times(folder: Path) -> dict[int, list[float]]:
    """When each seed began its steps."""
    traces = read_traces(folder)
    return {seed: [row.time for row in rows if row.what == "step"] for seed, rows in traces.items()}


@dataclass(frozen=True)
class Size:
    """A batch of images, and how fast agents go."""

    images: int = 48
    side: int = 224
    step_seconds: float = 1.0
    period: int = 20
    """Steps of a round. 20 steps of 1 s last as long as 100 of 0.2 s, and leave a small machine's processors to what is
    measured: Adam on 7.2 million pixels costs 35 ms of processor time a step."""

    @property
    def batch_bytes(self) -> int:
        """Of one candidate."""
        return 4 * 3 * self.images * self.side**2

    def object_store(self, agents: int) -> int:
        """Bytes that candidates and consensuses may take, so that Ray writes none of them to the disk.

        Two candidates of each agent, and the consensuses since the last checkpoint (`Order.legs`).
        """
        return (2 * agents + 34) * self.batch_bytes


TINY = Size(images=2, side=16, step_seconds=0.02, period=5)


def make_attack(
    size: Size, folder: Path, agents: int, rounds: int, mode: Mode = Mode.SYNC, method: str = "none"
) -> tuple[CapturedUpdate, SleepingModel, AttackConfig]:
    """A captured update, its model, and an attack whose agents meet after every round."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SleepingModel(size.images, size.step_seconds, folder).eval()
        images = torch.rand(size.images, 3, size.side, size.side)
    labels = torch.arange(size.images)
    update = capture_gradient(model, images, labels, normalisation=(_HALF, _HALF))
    config = AttackConfig(
        labels=",".join(map(str, labels.tolist())),
        # What is left is the cheapest objective that still is one.
        objective=ObjectiveConfig(total_variation_weight=0.0, batch_norm_weight=0.0, group_weight=0.0),
        peeling=PeelingConfig(enabled=False),
        agents=AgentsConfig(
            count=agents,
            iterations=rounds * size.period,
            warmup=0,
            learning_rate=1e-3,
            sign=False,
            box=False,
            threads=1,
        ),
        registration=RegistrationConfig(method=method),
        coordinator=CoordinatorConfig(mode=mode, period=size.period, start=0.0),
    )
    return update, model, config

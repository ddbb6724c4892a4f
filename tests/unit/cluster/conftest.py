"""A process of an agent without Ray, and what a test does to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import Account, Agent, AgentsConfig, ObjectiveConfig
from gradinversion.capture import capture_gradient
from gradinversion.cluster.agent_loop import AgentLoop, Reply
from gradinversion.coordinator import Leg, Order, Origin, StateFile, Storage
from gradinversion.target import Target
from torch import Tensor, nn

SEED = 7
CONFIG = AgentsConfig(iterations=40, warmup=4, noise=0.1, restarts=2)
LEGS = (
    Leg(0, 10),
    Leg(1, 20),
    Leg(2, 30, "consensus 2", (1, 0)),
    Leg(3, 40, "consensus 3", (0, 1)),
)
FIRST = (1, 1)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """States are written at once also where no other round follows."""
    monkeypatch.setattr("gradinversion.cluster.state_writer._BETWEEN_ROUNDS_SECONDS", 0.0)


Hooks = dict[int, Callable[[], object]]


@pytest.fixture
def target() -> Target:
    model = nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(27, 4)).eval()
    labels = torch.tensor([0, 2])
    update = capture_gradient(model, torch.rand(2, 1, 5, 5), labels, normalisation=((0.5,), (0.25,)))
    return Target(update, model, labels)


@pytest.fixture
def shared() -> dict[str, Tensor]:
    return {name: torch.randn(2, 1, 5, 5) for name in ("consensus 2", "consensus 3", "start")}


class Process:
    """A loop, and what a test does to its agent: a hook before each step, failures that depend on the step alone."""

    def __init__(
        self,
        target: Target,
        shared: dict[str, Tensor],
        storage: Storage | None = None,
        chunk: int | None = None,
        fails: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.hooks: Hooks = {}
        self.steps: list[int] = []
        """Each step that was made, as it stood before."""
        self.seen: list[Tensor | None] = []
        """The consensus at each of them."""
        self._fails = fails
        self._target, self._shared = target, shared
        everything: dict[str, Any] = {"target": target, **shared}
        self.loop = AgentLoop(SEED, self.make, everything.__getitem__, storage, chunk, threads=1)

    def make(self, target: Target) -> Agent:
        agent = Agent(target, ObjectiveConfig(group_weight=0.1), CONFIG, SEED)
        terms = agent._objective.terms

        def watched(images: Tensor, consensus: Tensor | None = None, *rest: Any, **named: Any) -> dict[str, Tensor]:
            self.steps.append(agent.step)
            self.seen.append(consensus)
            self.hooks.pop(agent.step, lambda: None)()
            bad = (agent._inverter.incarnation, agent.step) in self._fails
            return {
                name: value * (float("nan") if bad else 1.0)
                for name, value in terms(images, consensus, *rest, **named).items()
            }

        agent._objective.terms = watched  # type: ignore[method-assign]
        return agent

    def naive(self) -> list[tuple[Account, Tensor]]:
        """The accounts and images of all rounds, by an agent that nothing ever happens to."""
        agent, shared = self.make(self._target), self._shared
        consensus = {None: None, "consensus 2": shared["consensus 2"][[1, 0]], "consensus 3": shared["consensus 3"]}
        return [(agent.run(leg.until_step, consensus[leg.consensus]), agent.images) for leg in LEGS]

    def save_round(self, index: int) -> StateFile:
        """The state after a round that is made from the beginning."""
        self.reply(order_until(index, save=index))
        return self.loop.saved(index)

    def submit(self, order: Order) -> Any:
        return self.loop.submit(order, "target")

    def reply(self, order: Order) -> Reply:
        found: Reply = self.submit(order).result()
        return found


@pytest.fixture
def process(target: Target, shared: dict[str, Tensor], tmp_path: Path) -> Callable[..., Process]:
    """A process in `sync` mode that saves in a folder."""

    def make(**more: Any) -> Process:
        return Process(target, shared, **({"storage": Storage(tmp_path)} | more))

    return make


def order_until(until: int, since: int = 0, epoch: int = 1, save: int | None = None, **origin: Any) -> Order:
    """The order of the round `until`, for a process that begins before the round `since`."""
    return Order(epoch, Origin(**({"stint": FIRST} | origin)), LEGS[since : until + 1], save)


@pytest.fixture
def order() -> Callable[..., Order]:
    return order_until

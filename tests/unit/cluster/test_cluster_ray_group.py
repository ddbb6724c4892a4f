"""The group and its coordinator over a Ray that only this process knows, where time passes as it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradinversion.agents import Account, AgentsConfig, Outcome
from gradinversion.capture import capture_gradient
from gradinversion.cluster.agent_loop import Reply
from gradinversion.cluster.member import Member, Presence, State
from gradinversion.cluster.ray_group import RayGroup
from gradinversion.cluster.resources import Allotment
from gradinversion.coordinator import (
    AttackConfig,
    Coordinator,
    CoordinatorConfig,
    EventKind,
    Leg,
    Mode,
    Order,
    Origin,
    Part,
    StateFile,
    Storage,
    Wait,
    state_name,
)
from gradinversion.target import Target
from ray.exceptions import ActorUnavailableError
from torch import nn

SEEDS, ROUNDS, PERIOD = 3, 6, 10


@dataclass(eq=False)
class Reference:
    """What a call gives, and from which look on."""

    value: Any
    due: int


class FakeRay:
    """As much of Ray's module as the group uses."""

    def __init__(self) -> None:
        self.looks = 0

    def wait(self, references: Sequence[Reference], **options: Any) -> tuple[list[Reference], list[Reference]]:
        self.looks += 1
        ready = [one for one in references if one.due <= self.looks]
        return ready, [one for one in references if one not in ready]

    def get(self, references: Any) -> Any:
        if isinstance(references, list):
            return [self.get(one) for one in references]
        if not isinstance(references, Reference):
            return references
        if isinstance(references.value, Exception):
            raise references.value
        return references.value

    def put(self, value: Any) -> Any:
        return value

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(SEEDS)}


@dataclass
class Call:
    """A method of an actor's handle."""

    ray: FakeRay
    give: Callable[..., tuple[int, list[Any]]]

    def options(self, **options: Any) -> Call:
        return self

    def remote(self, *arguments: Any) -> Any:
        looks, values = self.give(*arguments)
        references = [Reference(value, self.ray.looks + looks) for value in values]
        return references if len(references) > 1 else references[0]


@dataclass
class Actor:
    """Answers orders after so many looks; while it is away, every call fails."""

    ray: FakeRay
    seed: int
    shape: tuple[int, ...]
    slowness: int = 1
    away: int = 0
    """For so many signs of life."""
    orders: list[Order] = field(default_factory=list)
    lives: int = 0

    def __getattr__(self, name: str) -> Call:
        return Call(self.ray, getattr(type(self), f"_{name}").__get__(self))

    def _ready(self) -> tuple[int, list[Any]]:
        if self.away:
            self.away -= 1
            self.lives += 1
            return 1, [_gone()]
        return 1, [Presence(f"{self.seed}-{self.lives}", "node")]

    def _run_round(self, order: Order, target: Any, parts: Sequence[Any]) -> tuple[int, list[Any]]:
        self.orders.append(order)
        if self.away:
            return 1, [_gone()] * (1 + len(parts))
        leg = order.current
        outcome = Outcome.FINISHED if leg.until_step >= ROUNDS * PERIOD else Outcome.RUNNING
        account = Account(self.seed, 0, leg.until_step, {"gradient": 0.5}, outcome)
        images = np.full(self.shape, 0.1 * self.seed, np.float32)
        return self.slowness, [Reply(leg.round, account, None), *(images[list(part)] for part in parts)]

    def _save_within(self, round: int, part: int) -> tuple[int, list[Any]]:
        if self.away:
            return 1, [_gone()]
        state = StateFile(state_name(round, self.seed, "w", part), "0" * 64, 1, step=1)
        return 1, [(state, Account(self.seed, 0, 1, {}, Outcome.RUNNING))]

    def _saved(self, round: int) -> tuple[int, list[Any]]:
        return 1, [StateFile(state_name(round, self.seed, "w"), "0" * 64, 1, step=(round + 1) * PERIOD)]


def _gone() -> Exception:
    return ActorUnavailableError("the process is gone", b"0" * 16)


class Group(RayGroup):
    """The real one over these actors."""

    def __init__(self, config: AttackConfig, actors: list[Actor], storage: Storage | None) -> None:
        super().__init__(config, Allotment(1.0, 0.0, 1), "run", False, storage)
        self._actors = actors

    def _make(self, member: Member) -> Any:
        return self._actors[member.position]


class Listener:
    """Does something at each look, and keeps what it was told."""

    def __init__(self) -> None:
        self.kinds: list[EventKind] = []
        self.states: list[tuple[int, int]] = []
        self.parts: list[tuple[Part, int, Any]] = []

    def idle(self) -> None:
        """Nothing."""

    def note(self, kind: EventKind, text: str, **facts: Any) -> None:
        self.kinds.append(kind)

    def waits(self, wait: Wait | None) -> None:
        """Nothing."""

    def saved_within(self, part: Part, position: int, found: Any) -> None:
        self.parts.append((part, position, found))

    def saved(self, round: int, position: int, state: Any) -> None:
        self.states.append((round, position))


def attack(mode: Mode) -> AttackConfig:
    return AttackConfig(
        labels="0,2",
        agents=AgentsConfig(count=SEEDS, iterations=ROUNDS * PERIOD, warmup=2),
        coordinator=CoordinatorConfig(mode=mode, period=PERIOD, start=0.3),
    )


@pytest.fixture
def target() -> Target:
    """Of images that are large enough to be registered."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(48, 4)).eval()
    labels = torch.tensor([0, 2])
    update = capture_gradient(model, torch.rand(2, 1, 8, 8), labels, normalisation=((0.5,), (0.25,)))
    return Target(update, model, labels)


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch, target: Target) -> list[Actor]:
    ray = FakeRay()
    for module in ("ray_group", "roster", "candidates"):
        monkeypatch.setattr(f"gradinversion.cluster.{module}.ray", ray)
    monkeypatch.setattr("gradinversion.cluster.ray_group.put", lambda value, model: value)
    monkeypatch.setattr("gradinversion.cluster.roster.draining_nodes", frozenset)
    monkeypatch.setattr("gradinversion.cluster.member.PING_SECONDS", 0.0)
    return [Actor(ray, seed, (2, 1, 8, 8)) for seed in range(SEEDS)]


@pytest.mark.parametrize("mode", Mode)
def test_a_run_with_a_slow_agent_is_saved_to_its_end(
    actors: list[Actor], target: Target, tmp_path: Path, mode: Mode
) -> None:
    """In async mode the slow agent is still busy with one round when the states of the next are wanted too."""
    actors[1].slowness = 7
    storage = Storage(tmp_path)
    config = attack(mode)
    result = Coordinator(target.update, target.model, config, Group(config, actors, storage), storage).run()
    assert result.outcome is Outcome.FINISHED
    assert not [text for text in result.messages if "was not saved" in text]
    assert (tmp_path / "checkpoints" / f"round-{ROUNDS - 1:06d}" / "manifest.json").exists()


def order(round: int, save: int | None = None) -> Order:
    legs = tuple(Leg(index, PERIOD * (index + 1)) for index in range(round + 1))
    return Order(1, Origin((1, 1)), legs, save)


def most(done: int, members: int) -> bool:
    return done > members // 2


def all_of_them(done: int, members: int) -> bool:
    return done >= members


def never(waited: float, others: int) -> bool:
    return False


def test_processes_begin_before_anything_is_known_of_the_batch(actors: list[Actor]) -> None:
    group = Group(attack(Mode.ASYNC), actors, None)
    group.place(Listener())
    while group.present() != frozenset(range(SEEDS)):
        pass


@pytest.fixture
def opened(actors: list[Actor], target: Target) -> tuple[Group, Listener]:
    group, listener = Group(attack(Mode.ASYNC), actors, None), Listener()
    group.place(listener)
    group.open(target)
    while group.present() != frozenset(range(SEEDS)):
        pass
    return group, listener


def test_a_lost_agent_gets_its_order_again_when_it_is_back(opened: tuple[Group, Listener], actors: list[Actor]) -> None:
    group, listener = opened
    actors[2].away = 4
    found, gone = group.run_round({0: order(0), 1: order(0), 2: order(0)}, all_of_them, never)
    assert (sorted(found), gone) == ([0, 1, 2], frozenset())
    assert actors[2].orders == [order(0), order(0)]
    assert listener.kinds == [EventKind.AGENT_LOST, EventKind.AGENT_BACK]


def test_states_in_the_middle_of_a_round_are_told_as_they_are_written(
    opened: tuple[Group, Listener], actors: list[Actor]
) -> None:
    group, listener = opened
    for actor in actors:
        actor.slowness = 6
    part = Part(0, 3, (0, 1, 2))
    asked = [True]
    listener.idle = lambda: group.save_within(part) if asked and asked.pop() else None  # type: ignore[method-assign]
    group.run_round(dict.fromkeys(range(3), order(0)), all_of_them, never)
    group.await_writes(0.0)
    told = sorted((position, found[0].name, found[1].seed) for _, position, found in listener.parts)
    folder = "checkpoints/round-000000-part-000003"
    assert told == [(seed, f"{folder}/seed-{seed}.w.safetensors", seed) for seed in range(3)]
    actors[1].away = 1
    group.save_within(Part(0, 4, (1,)))
    group.await_writes(0.0)
    assert listener.parts[-1][1:] == (1, "the process of an agent was lost while it wrote")
    before = len(listener.parts)
    group._members[2].presence = None
    group.save_within(Part(0, 5, (0, 1, 2)))
    group.await_writes(0.0)
    assert [told[1:] for told in listener.parts[before:]] == [(2, None)]  # the others were not asked


def test_an_order_for_an_agent_that_is_away_is_sent_when_it_is_back(
    opened: tuple[Group, Listener], actors: list[Actor]
) -> None:
    """In async mode the rounds go on; the newest order is what the next process gets, once."""
    group, listener = opened
    actors[2].away = 1_000
    for round in range(4):
        found, gone = group.run_round(dict.fromkeys(range(3), order(round, save=round)), most, never)
        assert (sorted(found), gone) == ([0, 1], frozenset())
        while group._members[2].state is not State.LOST:
            group.present()
    assert actors[2].orders == [order(0, save=0)]
    # The states that it can write no more are told of, so that nobody waits for them.
    assert [round for round, position in listener.states if position == 2] == [0, 1, 2]
    actors[2].away = 0
    found, _ = group.run_round(dict.fromkeys(range(3), order(3)), all_of_them, never)
    assert sorted(found) == [0, 1, 2]
    assert actors[2].orders == [order(0, save=0), order(3, save=3)]
    assert listener.kinds == [EventKind.AGENT_LOST, EventKind.AGENT_BACK]


def test_an_agent_that_is_given_up_may_take_part_again(opened: tuple[Group, Listener], actors: list[Actor]) -> None:
    group, listener = opened
    actors[2].away = 1_000
    found, gone = group.run_round(dict.fromkeys(range(3), order(0)), all_of_them, lambda waited, others: True)
    assert (sorted(found), gone) == ([0, 1], frozenset({2}))
    assert group.present() == frozenset({0, 1})
    actors[2].away = 0
    while 2 not in group.present():
        pass
    assert listener.kinds == [EventKind.AGENT_LOST, EventKind.AGENT_GIVEN_UP]  # it has no order, so nothing went on
    found, _ = group.run_round(dict.fromkeys(range(3), order(1)), all_of_them, never)
    assert sorted(found) == [0, 1, 2]


def test_an_agent_that_is_left_out_is_not_looked_for(opened: tuple[Group, Listener], actors: list[Actor]) -> None:
    group, _ = opened
    group._members[2].state = State.RETIRED
    assert group.present() == frozenset({0, 1})

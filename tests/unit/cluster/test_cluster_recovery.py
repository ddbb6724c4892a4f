"""What is decided about lost agents, without Ray."""

from __future__ import annotations

from typing import Any

import pytest
from gradinversion.agents import AgentsConfig
from gradinversion.capture import LabelError, ModelError, UpdateError
from gradinversion.cluster.agent_loop import StaleOrderError
from gradinversion.cluster.member import Member, Presence, State
from gradinversion.cluster.recovery import Recovery
from gradinversion.coordinator import EventKind, FencedError, Leg, Order, Origin, Phase, Wait
from gradinversion.refusal import ConfigError
from ray.exceptions import ActorUnavailableError, RayTaskError

ORDER = Order(1, Origin((1, 1), 0), (Leg(0, 10),), save=0)
KILLED = ActorUnavailableError("the process is gone", b"0" * 16)


class FakeRoster:
    """Keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def ping(self, member: Member) -> None:
        self.asked.append(("ping", member.position))

    def restart(self, member: Member) -> None:
        self.asked.append(("restart", member.position))


class FakeListener:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.kinds: list[EventKind] = []
        self.texts: list[str] = []
        self.states: list[tuple[int, int, Any]] = []
        self.waited: list[Wait | None] = []

    def idle(self) -> None:
        """Nothing."""

    def note(self, kind: EventKind, text: str, **facts: Any) -> None:
        self.kinds.append(kind)
        self.texts.append(text)

    def waits(self, wait: Wait | None) -> None:
        self.waited.append(wait)

    def saved(self, round: int, position: int, state: Any) -> None:
        self.states.append((round, position, state))


class Scene:
    """Four agents that carry out an order; the run needs two of them."""

    def __init__(self) -> None:
        self.members = [Member(position, 7 + position) for position in range(4)]
        self.roster, self.listener = FakeRoster(), FakeListener()
        config = AgentsConfig(count=4, minimum=2, patience=60)
        self.recovery = Recovery(self.members, self.roster, self.listener, config)  # type: ignore[arg-type]
        for member in self.members:
            self.run(member)

    def run(self, member: Member, order: Order = ORDER) -> None:
        member.arrive(Presence(f"{member.position}-{member.failures}", "node"))
        member.give(order, 0.0)
        member.send()

    def fail(self, position: int, times: int = 6, error: Any = KILLED) -> None:
        for time in range(times):
            if time:
                self.run(self.members[position])
            self.recovery.failed(self.members[position], error)

    def give_up(self, decide: Any = lambda waited, others: False) -> set[int]:
        return self.recovery.give_up(self.members, decide)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def in_the_agent(error: Exception) -> RayTaskError:
    return RayTaskError("run_round", "", error)


def test_a_lost_process_is_told_of_and_looked_for(scene: Scene) -> None:
    scene.recovery.failed(scene.members[1], KILLED)
    assert scene.members[1].state is State.LOST
    assert scene.roster.asked == [("ping", 1)]
    assert scene.listener.texts == ["The process of {seed} was lost."]


def test_an_error_inside_the_agent_needs_a_new_process(scene: Scene) -> None:
    scene.recovery.failed(scene.members[1], in_the_agent(RuntimeError("the device is gone\nin many words")))
    assert (scene.members[1].state, scene.members[1].ended) == (State.LOST, "1-0")
    assert scene.roster.asked == [("restart", 1)]
    assert scene.listener.texts == ["{seed} failed: the device is gone"]


@pytest.mark.parametrize(
    "error", [ConfigError(["a key"]), ModelError("a model"), UpdateError("an update"), LabelError("labels")]
)
def test_what_an_agent_refuses_is_not_tried_again(scene: Scene, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        scene.recovery.failed(scene.members[0], in_the_agent(error))
    assert scene.members[0].failures == 0
    assert scene.roster.asked == []


def test_an_agent_that_obeys_another_coordinator_ends_this_one(scene: Scene) -> None:
    with pytest.raises(FencedError, match=r"taken this run over \(epoch 1 was replaced by 2\)"):
        scene.recovery.failed(scene.members[0], in_the_agent(StaleOrderError("epoch 1 was replaced by 2")))


def test_a_state_that_nobody_writes_any_more_is_told(scene: Scene) -> None:
    member = scene.members[2]
    member.give(Order(1, Origin((1, 1), 0), (Leg(0, 10), Leg(1, 20)), save=1), 0.0)
    scene.recovery.failed(member, KILLED)
    assert scene.listener.states == [(0, 2, "the process of an agent was lost before it wrote")]


def test_who_fails_every_time_is_left_out(scene: Scene) -> None:
    scene.fail(3, times=5)
    lost = scene.members[3]
    assert lost.state is State.LOST
    scene.run(lost)
    scene.fail(3, times=1, error=in_the_agent(RuntimeError("a bad disk")))
    assert scene.members[3].state is State.RETIRED
    assert scene.listener.texts[-1] == "{seed} failed 6 times in one round and is left out (a bad disk)."
    assert scene.give_up() == {3}


def test_below_the_minimum_the_run_ends_with_the_error(scene: Scene) -> None:
    scene.fail(3)
    scene.fail(2)
    with pytest.raises(RuntimeError, match="no memory"):
        scene.fail(1, error=in_the_agent(RuntimeError("no memory")))


def test_a_lost_agent_is_waited_for_until_it_is_given_up(scene: Scene) -> None:
    scene.fail(1, times=1)
    asked: list[tuple[float, int]] = []

    def wait(waited: float, others: int) -> bool:
        asked.append((waited, others))
        return False

    assert scene.give_up(wait) == set()
    ((waited, others),) = asked
    assert waited >= 0
    assert others == 3
    assert scene.roster.asked == [("ping", 1)] * 2
    assert scene.give_up(lambda waited, others: True) == {1}
    assert scene.members[1].state is State.PENDING
    assert scene.listener.kinds[-1] is EventKind.AGENT_GIVEN_UP


def test_who_is_left_out_or_given_up_is_not_among_those_who_go_on(scene: Scene) -> None:
    """Two stay; where three are needed, the lost one is waited for although another one leaves at the same time."""
    scene.fail(0)
    scene.fail(1, times=1)
    assert scene.give_up(lambda waited, others: others >= 3) == {0}
    assert scene.members[1].state is State.LOST


def test_a_run_that_stands_still_says_so_once_and_says_when_it_goes_on(scene: Scene) -> None:
    for position in (0, 1, 2):
        scene.fail(position, times=1)
        scene.members[position].lost_at -= 61
    for _ in range(3):
        assert scene.give_up() == set()
    assert scene.listener.waited == [Wait(Phase.PAUSED, 1, 2)]
    for position in (0, 1, 2):
        scene.run(scene.members[position])
    scene.give_up()
    scene.give_up()
    assert scene.listener.waited == [Wait(Phase.PAUSED, 1, 2), None]

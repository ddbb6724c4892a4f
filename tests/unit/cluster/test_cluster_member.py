"""An agent's record: where it stands after each thing that can happen to it, and what it owes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from gradinversion.agents import Account, Outcome
from gradinversion.cluster.agent_loop import Reply
from gradinversion.cluster.member import Member, Presence, State
from gradinversion.coordinator import Leg, Order, Origin, StateFile

STATE = StateFile("checkpoints/round-000000/seed-0.w.safetensors", "0" * 64, 9, step=10)
LEFT = StateFile("checkpoints/round-000001/seed-0.w.safetensors", "1" * 64, 9, step=15)
LEGS = (Leg(0, 10), Leg(1, 20), Leg(2, 30))
HERE = Presence("first process", "first node")
NEXT = Presence("second process", "second node")


def order(round: int, save: int | None = None, since: int = 0) -> Order:
    return Order(1, Origin((1, 1), 0), LEGS[since : round + 1], save)


def reply(round: int, step: int | None = None, left: StateFile | None = None, **more: Any) -> Reply:
    step = LEGS[round].until_step if step is None else step
    rows = ({"step": float(step), "total": 1.0},)
    facts: dict[str, Any] = {"seconds": 2.0, "trace": rows} | more
    return Reply(round, Account(7, 0, step, {"total": 1.0}, Outcome.RUNNING, **facts), None, left=left)


def steps(account: Account) -> list[int]:
    return [int(row["step"]) for row in account.trace]


def ready() -> Member:
    member = Member(0, 7)
    assert not member.arrive(HERE)
    return member


def running(first: Order) -> Member:
    member = ready()
    assert member.give(first, 0.0) is None
    assert member.send() is first
    return member


def lost(first: Order) -> Member:
    member = running(first)
    assert member.lose(5.0) is None
    return member


# Where it stands.


def test_a_round_without_a_fault() -> None:
    member = Member(0, 7)
    assert (member.state, member.presence) == (State.PENDING, None)
    assert not member.arrive(HERE)
    assert (member.state, member.presence) == (State.READY, HERE)
    member.give(order(0), 0.0)
    assert (member.state, member.presence) == (State.READY, HERE)  # the order is due, nobody has sent it
    member.send()
    assert (member.state, member.presence) == (State.RUNNING, HERE)
    assert member.answer(reply(0), ["images"]) is None
    assert member.state is State.READY
    assert member.images == ["images"]
    assert not member.is_behind(reply(0))


def test_a_lost_process_is_waited_for_and_its_successor_gets_the_order() -> None:
    member = lost(order(1))
    assert (member.state, member.presence, member.lost_at) == (State.LOST, None, 5.0)
    assert member.arrive(NEXT)  # an order waits
    assert (member.state, member.presence) == (State.READY, NEXT)
    assert member.send() == order(1)


def test_an_order_without_a_process_waits_for_one() -> None:
    member = Member(0, 7)
    member.give(order(0), 3.0)
    assert (member.state, member.lost_at) == (State.LOST, 3.0)
    assert member.arrive(HERE)


def test_a_process_that_was_ended_on_purpose_may_answer_before_it_is_gone() -> None:
    member = running(order(0))
    member.lose(5.0, on_purpose=True)
    assert not member.arrive(HERE)
    assert (member.state, member.presence) == (State.LOST, None)
    assert member.arrive(NEXT)


def test_a_process_that_was_only_out_of_reach_may_come_back() -> None:
    member = lost(order(0))
    assert member.arrive(HERE)


def test_who_is_given_up_begins_as_one_that_nobody_knows() -> None:
    member = running(order(0))
    member.answer(reply(0), ["images"])
    member.give(order(1), 0.0)
    member.send()
    member.lose(5.0)
    member.drop()
    assert (member.state, member.order, member.account, member.images) == (State.PENDING, None, None, ())
    assert not member.arrive(NEXT)
    assert member.state is State.READY


def test_who_is_retired_stays_so_whatever_happens() -> None:
    member = lost(order(0))
    member.retire()
    assert not member.arrive(NEXT)
    member.give(order(1), 0.0)
    member.drop()
    assert member.state is State.RETIRED
    assert member.account is None


@pytest.mark.parametrize("change", [Member.retire, Member.send], ids=["retired", "sent again"])
def test_what_cannot_follow_is_refused(change: Any) -> None:
    with pytest.raises(AssertionError, match="does not become"):
        change(running(order(0)))


# What it owes.


def test_the_state_of_the_order_that_was_sent_is_asked_for() -> None:
    member = running(order(0, save=0))
    assert member.answer(reply(0), []) == 0
    assert member.order == order(0)  # asked for once


def test_a_newer_order_takes_nothing_from_the_one_under_way() -> None:
    """In async mode; both states are wanted, and the older one is written by the process that is under way."""
    member = running(order(0, save=0))
    assert member.give(order(1, save=1), 0.0) is None
    assert member.state is State.RUNNING
    assert member.answer(reply(0), []) == 0
    assert member.is_behind(reply(0))
    assert member.send() == order(1, save=1)
    assert member.answer(reply(1), []) == 1
    assert not member.is_behind(reply(1))


@pytest.mark.parametrize(
    ("newest", "kept", "forgotten"),
    [(order(2), 1, None), (order(1), 1, None), (order(2, save=2), 2, 1)],
    ids=["a later round", "the same round again", "a later round with a write of its own"],
)
def test_an_order_that_was_never_sent_leaves_its_write_to_the_next_one(
    newest: Order, kept: int, forgotten: int | None
) -> None:
    """In async mode, where a slow agent is two rounds behind: a write that nobody makes would be awaited for ever."""
    member = running(order(0, save=0))
    assert member.give(order(1, save=1), 0.0) is None
    assert member.give(newest, 1.0) == forgotten
    assert member.answer(reply(0), []) == 0
    assert member.send() == replace(newest, save=kept)
    assert member.answer(reply(newest.current.round), []) == kept
    assert not member.is_behind(reply(newest.current.round))


def test_an_order_of_the_same_round_that_wants_its_state_is_sent_too() -> None:
    member = running(order(0))
    member.give(order(0, save=0), 0.0)
    assert member.answer(reply(0), []) is None
    assert member.is_behind(reply(0))
    member.send()
    assert member.answer(reply(0), []) == 0
    assert not member.is_behind(reply(0))


@pytest.mark.parametrize(
    ("newest", "kept", "forgotten"),
    [(None, 0, None), (0, 0, None), (1, 1, 0)],
    ids=["none of its own", "the same", "its own"],
)
@pytest.mark.parametrize("when", ["before the loss", "after it"])
def test_a_lost_process_s_write_is_owed_by_the_next_one_or_told_of(
    newest: int | None, kept: int, forgotten: int | None, when: str
) -> None:
    member = running(order(0, save=0))
    told = []
    if when == "after it":
        told.append(member.lose(5.0))
    told.append(member.give(order(1, save=newest), 6.0))
    if when == "before the loss":
        told.append(member.lose(5.0))
    assert member.order == order(1, save=kept)
    assert [round for round in told if round is not None] == ([] if forgotten is None else [forgotten])


def test_a_lost_agent_keeps_the_time_since_when_it_is_waited_for() -> None:
    """In async mode; the next rounds' orders come while it is away."""
    member = lost(order(0))
    member.give(order(1), 8.0)
    member.give(order(2), 9.0)
    assert (member.state, member.lost_at) == (State.LOST, 5.0)
    assert member.arrive(NEXT)
    assert member.send() == order(2)


# An order that begins from further on.

SENT = replace(order(1), save=1)
LATER = Order(1, Origin((1, 1), 10, STATE), (LEGS[1],))


def test_an_order_begins_from_the_newer_state_and_keeps_what_it_owes() -> None:
    member = running(SENT)
    member.renew(LATER)
    assert member.order == replace(LATER, save=1)
    assert member.lose(0.0) is None
    assert member.arrive(NEXT)
    assert member.send() == replace(LATER, save=1)


@pytest.mark.parametrize(
    "later",
    [
        replace(LATER, origin=replace(LATER.origin, stint=(1, 2))),
        replace(LATER, legs=(LEGS[2],)),
        replace(LATER, origin=replace(LATER.origin, step=0)),
    ],
    ids=["another stint", "another round", "no further"],
)
def test_an_order_that_is_not_the_same_one_from_further_on_is_not_taken(later: Order) -> None:
    member = running(SENT)
    member.renew(later)
    assert member.order == SENT


def test_an_agent_without_an_order_gets_none() -> None:
    member = ready()
    member.renew(LATER)
    assert member.order is None


# A node that is taken away.


def test_an_agent_that_left_in_the_middle_of_a_round_goes_on_from_there() -> None:
    member = running(order(1, save=1))
    begun = member.whole(reply(1, step=15, left=LEFT))
    assert member.move_away(begun, 5.0) is None
    assert (member.state, member.presence, member.ended) == (State.LOST, None, HERE.token)
    assert member.order == Order(1, Origin((1, 1), 15, LEFT), (LEGS[1],), save=1)
    assert member.arrive(NEXT)
    member.send()
    rest = member.whole(reply(1))
    assert steps(rest.account) == [15, 20]
    assert rest.account.seconds == 4.0
    assert member.answer(rest, []) == 1
    assert steps(member.whole(reply(1)).account) == [20]  # told once


def test_it_may_leave_twice_within_a_round() -> None:
    member = running(order(1))
    for step, presence in ((13, NEXT), (15, HERE)):
        begun = member.whole(reply(1, step=step, left=replace(LEFT, step=step)))
        member.move_away(begun, 5.0)
        assert member.arrive(presence)
        assert member.send().origin.step == step
    assert steps(member.whole(reply(1)).account) == [13, 15, 20]


def test_a_process_is_told_once_that_it_must_leave() -> None:
    member = ready()
    assert not member.must_leave(frozenset({"second node"}))
    assert member.must_leave(frozenset({"first node"}))
    assert not member.must_leave(frozenset({"first node"}))
    member.give(order(0), 0.0)
    member.send()
    member.lose(0.0, on_purpose=True)
    assert not member.must_leave(frozenset({"second node"}))
    member.arrive(NEXT)
    assert member.must_leave(frozenset({"second node"}))


# What it tells, and when it is asked.


def test_what_was_recorded_is_told_once_and_nothing_is_left_out() -> None:
    member = running(order(0))
    member.answer(reply(0), [])
    member.give(order(1), 0.0)
    member.send()
    member.answer(reply(1), [])
    told = member.tell()
    assert (told.step, steps(told), told.seconds) == (20, [10, 20], 4.0)
    again = member.tell()
    assert (again.step, steps(again), again.seconds) == (20, [], 0.0)
    assert again.losses == {"total": 1.0}


def test_a_sign_of_life_is_asked_for_once_and_not_at_once_after_a_refusal() -> None:
    member = Member(0, 7)
    assert member.may_be_asked(0.0)
    member.ask(0.0)
    assert not member.may_be_asked(100.0)
    member.is_asked = False
    assert not member.may_be_asked(0.05)
    assert member.may_be_asked(0.2)

"""Orders: all that a process needs that knows nothing, and no more."""

from __future__ import annotations

import pytest
from gradinversion.coordinator import Itinerary, Leg, StateFile
from gradinversion.coordinator.orders import MOST_LEGS


def leg(index: int) -> Leg:
    return Leg(index, 10 * (index + 1), f"consensus {index}", (1, 0))


def state(step: int) -> StateFile:
    return StateFile(f"checkpoints/round-000000/seed-{step}.w.safetensors", "0" * 64, 9, step)


@pytest.fixture
def itinerary() -> Itinerary:
    itinerary = Itinerary(epoch=4)
    itinerary.enter(0, 0)
    return itinerary


def rounds(itinerary: Itinerary, position: int = 0) -> list[int]:
    return [known.round for known in itinerary.again(position).legs]


def test_an_order_has_all_rounds_since_the_origin(itinerary: Itinerary) -> None:
    for index in range(3):
        order = itinerary.order(0, leg(index))
        assert order.legs == tuple(leg(known) for known in range(index + 1))
        assert order.current == leg(index)
    assert (order.epoch, order.save) == (4, None)
    assert (order.origin.step, order.origin.state, order.origin.start) == (0, None, None)
    assert itinerary.again(0) == order
    assert itinerary.again(0, save=2).save == 2
    assert itinerary.order(0, leg(3), save=3).save == 3


def test_a_round_that_is_ordered_again_stands_there_once(itinerary: Itinerary) -> None:
    for index in (0, 1, 1, 1):
        itinerary.order(0, leg(index))
    assert rounds(itinerary) == [0, 1]


def test_who_takes_part(itinerary: Itinerary) -> None:
    itinerary.enter(5, 0)
    itinerary.enter(2, 0)
    before = itinerary.members
    assert before == (0, 2, 5)
    itinerary.leave(2)
    itinerary.leave(2)
    itinerary.leave(9)
    assert itinerary.members == (0, 5)


def test_a_seed_begins_near_shared_images_or_from_a_state(itinerary: Itinerary) -> None:
    itinerary.enter(1, 20, start="images")
    itinerary.enter(2, 30, state=state(30))
    near, saved = itinerary.order(1, leg(2)).origin, itinerary.order(2, leg(3)).origin
    assert (near.step, near.start, near.state) == (20, "images", None)
    assert (saved.step, saved.start, saved.state) == (30, None, state(30))


def test_no_two_stints_are_alike(itinerary: Itinerary) -> None:
    stints = set()
    for position in (0, 1, 1, 0):
        itinerary.enter(position, 0)
        stints.add(itinerary.order(position, leg(0)).origin.stint)
    assert len(stints) == 4
    later = Itinerary(epoch=5)
    later.enter(0, 0)
    assert later.order(0, leg(0)).origin.stint not in stints


def test_what_lies_before_a_saved_state_is_forgotten(itinerary: Itinerary) -> None:
    itinerary.order(0, leg(0), save=0)
    before = itinerary.order(0, leg(1)).origin
    itinerary.order(0, leg(2))
    itinerary.moved(0, 0, state(10))
    order = itinerary.again(0)
    assert [known.round for known in order.legs] == [1, 2]
    assert (order.origin.step, order.origin.state) == (10, state(10))
    # A process that is on its way goes on: nothing that it did has lost its worth.
    assert order.origin.stint == before.stint


def test_images_to_begin_near_give_way_to_a_saved_state() -> None:
    itinerary = Itinerary(epoch=1)
    itinerary.enter(0, 10, start="images")
    itinerary.order(0, leg(1), save=1)
    itinerary.moved(0, 1, state(20))
    assert itinerary.again(0).origin.start is None


@pytest.mark.parametrize("step", [30, 35, 1000])
def test_the_last_round_stays_also_where_it_lies_behind(itinerary: Itinerary, step: int) -> None:
    for index in range(3):
        itinerary.order(0, leg(index), save=index)
    itinerary.moved(0, 2, state(step))
    assert rounds(itinerary) == [2]
    itinerary.order(0, leg(3))
    assert rounds(itinerary) == [2, 3]  # a process skips what lies behind it


def test_a_state_in_the_middle_of_a_round_keeps_that_round(itinerary: Itinerary) -> None:
    for index in range(4):
        itinerary.order(0, leg(index), save=index)
    itinerary.moved(0, 3, state(14))  # async: a state is of any step
    assert rounds(itinerary) == [1, 2, 3]


def test_a_state_of_a_seed_that_left_is_passed_over(itinerary: Itinerary) -> None:
    itinerary.order(0, leg(0), save=0)
    itinerary.leave(0)
    itinerary.moved(0, 0, state(10))
    assert itinerary.members == ()


@pytest.mark.parametrize("leaves", [True, False])
def test_a_state_from_before_a_seed_left_is_not_where_it_goes_on(itinerary: Itinerary, leaves: bool) -> None:
    itinerary.order(0, leg(0), save=0)
    if leaves:
        itinerary.leave(0)
    itinerary.enter(0, 20, start="images")
    itinerary.moved(0, 0, state(10))  # also before its first order
    itinerary.order(0, leg(2))
    itinerary.moved(0, 0, state(10))
    order = itinerary.again(0)
    assert (order.origin.step, order.origin.start, order.origin.state) == (20, "images", None)
    itinerary.again(0, save=2)
    itinerary.moved(0, 2, state(30))
    assert itinerary.again(0).origin.state == state(30)


def test_a_state_that_became_whole_late_counts_while_the_next_one_is_on_its_way(itinerary: Itinerary) -> None:
    itinerary.order(0, leg(0), save=0)
    itinerary.order(0, leg(1), save=1)
    assert itinerary.moved(0, 0, state(10))
    assert itinerary.again(0).origin.state == state(10)
    assert itinerary.moved(0, 1, state(20))
    assert itinerary.again(0).origin.state == state(20)


def test_an_older_state_does_not_count_after_a_newer_one(itinerary: Itinerary) -> None:
    for index in range(2):
        itinerary.order(0, leg(index), save=index)
    assert itinerary.moved(0, 1, state(20))
    assert not itinerary.moved(0, 0, state(10))
    assert itinerary.again(0).origin.state == state(20)


def test_what_was_saved_before_a_seed_came_back_does_not_count_though_it_saves_again(itinerary: Itinerary) -> None:
    itinerary.order(0, leg(0), save=0)
    itinerary.leave(0)
    itinerary.enter(0, 20, start="images")
    itinerary.order(0, leg(2), save=2)
    assert not itinerary.moved(0, 0, state(10))
    assert itinerary.again(0).origin.start == "images"


def test_without_states_only_so_many_rounds_are_kept(itinerary: Itinerary) -> None:
    for index in range(MOST_LEGS):
        itinerary.order(0, leg(index))
    assert rounds(itinerary) == list(range(MOST_LEGS))
    for index in range(MOST_LEGS, MOST_LEGS + 8):
        itinerary.order(0, leg(index))
    assert rounds(itinerary) == list(range(8, MOST_LEGS + 8))
    assert itinerary.again(0).origin.step == 0


def test_an_order_does_not_change_when_others_follow(itinerary: Itinerary) -> None:
    first = itinerary.order(0, leg(0), save=0)
    itinerary.order(0, leg(1))
    itinerary.moved(0, 0, state(10))
    assert (first.legs, first.origin.state) == ((leg(0),), None)

"""The loop of an agent without Ray: whatever happens on the way, the same numbers; every order answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import Account, Agent
from gradinversion.cluster.agent_loop import Reply, StaleOrderError
from gradinversion.coordinator import Leg, Order, Origin, Storage, StorageError, read_tensors, state_name, write_state
from gradinversion.target import Target
from torch import Tensor


def same(reply: Reply, expected: tuple[Account, Tensor | None]) -> None:
    found, (told, images) = reply.account, expected
    assert reply.images is not None
    assert images is not None
    assert torch.equal(reply.images, images)
    assert (found.step, found.incarnation, found.outcome) == (told.step, told.incarnation, told.outcome)
    assert (found.losses, found.trace, found.failures) == (told.losses, told.trace, told.failures)


def test_round_by_round_it_is_the_agent_s_own_descent(process: Callable[..., Any], order: Callable[..., Order]) -> None:
    expected = process().naive()
    one = process()
    for index, wanted in enumerate(expected):
        reply = one.reply(order(index))
        assert (reply.round, reply.left) == (index, None)
        same(reply, wanted)
    assert one.steps == list(range(40))
    assert one.loop.step == 40


def test_an_order_that_is_given_twice_is_carried_out_once(
    process: Callable[..., Any], order: Callable[..., Order]
) -> None:
    expected = process().naive()
    one = process()
    for index in (0, 1, 2):
        for _ in range(3):
            same(one.reply(order(index)), expected[index])
    assert one.steps == list(range(30))


@pytest.mark.parametrize("fails", [(), ((0, 22), (1, 27))], ids=["smooth", "restarts"])
@pytest.mark.parametrize("saved", [0, 1, 2])
def test_a_fresh_process_goes_on_from_a_state_file(
    process: Callable[..., Any], saved: int, fails: Any, order: Callable[..., Order]
) -> None:
    expected = process(fails=fails).naive()
    state = process(fails=fails).save_round(saved)
    assert state.step == 10 * (saved + 1)
    fresh = process(fails=fails)
    # One, two or three rounds since; only the last one is told of, the others were when they were made first.
    same(fresh.reply(order(3, since=saved + 1, step=state.step, state=state)), expected[3])
    assert fresh.steps[0] == state.step


@pytest.mark.parametrize("until", [2, 3])
def test_a_seed_that_joined_late_is_replayed(
    process: Callable[..., Any], until: int, order: Callable[..., Order]
) -> None:
    one, fresh = process(), process()
    joins: dict[str, Any] = {"since": 1, "step": 10, "start": "start"}
    for index in range(1, until + 1):
        reply = one.reply(order(index, **joins))
    assert one.steps == list(range(10, 10 * (until + 1)))
    same(fresh.reply(order(until, **joins)), (reply.account, reply.images))
    assert not torch.equal(reply.images, process().reply(order(until)).images)


FAILURES = {
    "smooth": (),
    "failed before it left": ((0, 23),),
    "fails after it left": ((0, 28),),
    "both": ((0, 23), (1, 27)),
    "dropped after it left": ((0, 23), (1, 27), (2, 22)),
}


@pytest.mark.parametrize("fails", FAILURES.values(), ids=FAILURES)
def test_a_round_that_was_left_in_the_middle_is_ended_elsewhere(
    process: Callable[..., Any], fails: Any, order: Callable[..., Order]
) -> None:
    expected, images = process(fails=fails).naive()[2]
    one = process(fails=fails)
    one.reply(order(1))
    one.hooks[25] = one.loop.leave
    begun = one.reply(order(2))
    assert begun.left is not None
    # The step that was under way is ended first.
    assert begun.account.step == begun.left.step == 26
    assert one.reply(order(2)).left is not None  # asked again it does not go on either
    assert max(one.steps) == 25
    elsewhere = process(fails=fails)
    rest = elsewhere.reply(order(2, since=2, step=26, state=begun.left))
    assert rest.left is None
    assert elsewhere.steps[0] == 26
    # A dropped seed's images are not numbers, in both.
    torch.testing.assert_close(rest.images, images, rtol=0, atol=0, equal_nan=True)
    assert rest.account.outcome == expected.outcome
    assert rest.account.incarnation == expected.incarnation
    assert (*begun.account.failures, *rest.account.failures) == expected.failures


def test_it_leaves_between_two_rounds_with_the_next_order(
    process: Callable[..., Any], order: Callable[..., Order]
) -> None:
    one = process()
    one.reply(order(0))
    one.loop.leave()
    assert one.reply(order(0)).left is None  # that round is done
    left = one.reply(order(1)).left
    assert left is not None
    assert left.step == 10
    assert one.steps == list(range(10))


def test_what_left_is_not_what_was_saved(
    process: Callable[..., Any], tmp_path: Path, order: Callable[..., Order]
) -> None:
    one = process()
    state = one.save_round(0)
    one.loop.leave()
    left = one.reply(order(1)).left
    assert left is not None
    assert left.name != state.name
    assert read_tensors(Storage(tmp_path), state).keys() == read_tensors(Storage(tmp_path), left).keys()


def test_a_newer_coordinator_interrupts_the_older_one(process: Callable[..., Any], order: Callable[..., Order]) -> None:
    expected = process().naive()
    one = process()
    state = one.save_round(0)
    answers: list[Any] = []
    newer = order(1, since=1, epoch=2, stint=(2, 1), step=10, state=state)
    one.hooks[16] = lambda: answers.append(one.submit(newer))
    with pytest.raises(StaleOrderError, match="a newer order came"):
        one.reply(order(1))
    same(answers[0].result(), expected[1])
    assert one.steps == [*range(10), *range(10, 17), *range(10, 20)]


def test_it_does_so_also_before_the_first_step(process: Callable[..., Any], order: Callable[..., Order]) -> None:
    one = process()
    has_work, answers = one.loop._has_work, list[Any]()

    def newer_order_comes_now() -> bool:
        # Between the look at the queue and the work.
        if one.loop._task is not None and not answers:
            answers.append(one.submit(order(0, epoch=2, stint=(2, 1))))
        return has_work()

    one.loop._has_work = newer_order_comes_now
    with pytest.raises(StaleOrderError):
        one.reply(order(0))
    assert answers[0].result().account.step == 10
    assert one.steps == list(range(10))


def test_an_older_coordinator_is_refused_and_changes_nothing(
    process: Callable[..., Any], order: Callable[..., Order]
) -> None:
    one = process()
    first = one.reply(order(0, epoch=2))
    with pytest.raises(StaleOrderError, match="epoch 1 was replaced by 2"):
        one.reply(order(1, epoch=1))
    assert one.loop.step == 10
    assert torch.equal(one.reply(order(0, epoch=2)).images, first.images)


def test_of_two_coordinators_that_ask_at_once_the_newer_one_wins(
    process: Callable[..., Any], order: Callable[..., Order]
) -> None:
    for _ in range(20):
        one = process()
        barrier = threading.Barrier(4)
        answers: dict[int, Any] = {}

        def ask(epoch: int, one: Any = one, barrier: Any = barrier, answers: Any = answers) -> None:
            barrier.wait()
            answers[epoch] = one.submit(order(0, epoch=epoch, stint=(epoch, 1)))

        threads = [threading.Thread(target=ask, args=(epoch,)) for epoch in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers[4].result().account.step == 10
        with pytest.raises(StaleOrderError, match="replaced by 4"):
            one.reply(order(0, epoch=3))


class _Away(BaseException):
    """No Exception, as what ends a thread is none."""


@pytest.mark.parametrize("error", [RuntimeError("the device is gone"), _Away("gone"), SystemExit(1)])
def test_an_error_answers_the_order_and_the_loop_lives(
    process: Callable[..., Any], error: BaseException, order: Callable[..., Order]
) -> None:
    one = process()

    def fail() -> None:
        raise error

    one.hooks[14] = fail
    with pytest.raises(type(error)) as found:
        one.reply(order(1))
    assert found.value is error
    # Nobody knows what the error left behind: it begins where a fresh process would.
    same(one.reply(order(1)), process().naive()[1])
    assert one.steps == [*range(15), *range(20)]


def test_an_agent_that_cannot_be_made_is_made_again(
    process: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, order: Callable[..., Order]
) -> None:
    one = process()
    make, made = one.loop._make, []

    def fails_once(target: Target) -> Agent:
        made.append(target)
        if len(made) == 1:
            raise RuntimeError("no memory")
        return make(target)

    monkeypatch.setattr(one.loop, "_make", fails_once)
    with pytest.raises(RuntimeError, match="no memory"):
        one.reply(order(0))
    assert one.reply(order(0)).account.step == 10


def test_a_state_of_other_images_is_refused_and_the_loop_lives(
    process: Callable[..., Any], tmp_path: Path, order: Callable[..., Order]
) -> None:
    one = process()
    state = one.save_round(0)
    content = read_tensors(Storage(tmp_path), state)
    content["images"] = content["images"][:1]
    foreign = write_state(Storage(tmp_path), state_name(0, 7, "other"), content, 10)
    with pytest.raises(ValueError, match=r"images has shape \(1, 1, 5, 5\), but \(2, 1, 5, 5\) is wanted"):
        one.reply(order(1, since=1, stint=(1, 2), state=foreign))
    (tmp_path / state.name).write_bytes(b"torn")
    with pytest.raises(StorageError, match="bytes instead of"):
        one.reply(order(1, since=1, stint=(1, 3), state=state))
    assert one.reply(order(1)).account.step == 20


def test_a_new_coordinator_s_consensus_of_the_same_round_is_another(
    process: Callable[..., Any], shared: dict[str, Tensor], order: Callable[..., Order]
) -> None:
    one = process()
    one.reply(order(2))
    one.reply(Order(2, Origin((2, 1), 20, start="start"), (Leg(2, 30, "consensus 3", (0, 1)),)))
    assert torch.equal(one.seen[-1], shared["consensus 3"])

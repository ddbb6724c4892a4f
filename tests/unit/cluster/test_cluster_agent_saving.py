"""The loop of an agent without Ray: what it saves, and how it descends by itself in async mode."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import Outcome
from gradinversion.coordinator import Order, Storage, StorageError, read_tensors
from torch import Tensor

# Saving.


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


def test_a_state_is_written_once_under_the_name_of_round_seed_and_process(
    process: Callable[..., Any], tmp_path: Path, order: Callable[..., Order]
) -> None:
    one, other = process(), process()
    assert one.loop.token != other.loop.token
    state = one.save_round(1)
    assert state.name.startswith(f"checkpoints/round-000001/seed-7.{one.loop.token}-")
    assert state.step == 20
    one.reply(order(1, save=1))
    one.reply(order(1))
    assert one.loop.saved(1) == state
    assert files(tmp_path) == [state.name]
    agent = one.make(one._target)
    agent.restore(read_tensors(Storage(tmp_path), state))
    assert torch.equal(agent.images, one.reply(order(1)).images)


def test_a_round_that_was_made_without_saving_is_saved_when_it_is_asked_for_again(
    process: Callable[..., Any], tmp_path: Path, order: Callable[..., Order]
) -> None:
    one = process()
    one.reply(order(0))
    assert files(tmp_path) == []
    one.reply(order(0, save=0))
    assert one.loop.saved(0).step == 10
    assert one.steps == list(range(10))


def test_a_state_that_could_not_be_written_is_written_when_it_is_asked_for_again(
    process: Callable[..., Any], tmp_path: Path, order: Callable[..., Order]
) -> None:
    one = process()
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    one.reply(order(0, save=0))
    with pytest.raises(StorageError, match="cannot be written"):
        one.loop.saved(0)
    (tmp_path / "checkpoints").unlink()
    one.reply(order(0, save=0))
    state = one.loop.saved(0)
    assert files(tmp_path) == [state.name]


def test_a_new_coordinator_s_round_is_written_anew(
    process: Callable[..., Any], tmp_path: Path, order: Callable[..., Order]
) -> None:
    one = process()
    old = one.save_round(0)
    (tmp_path / old.name).unlink()  # the run began anew in the same folder
    one.reply(order(0, epoch=2, stint=(2, 1), save=0))
    new = one.loop.saved(0)
    assert files(tmp_path) == [new.name]
    assert new.name != old.name  # a late write of the old one would not harm it


def test_a_state_is_written_after_the_first_step_of_the_next_round(
    process: Callable[..., Any], tmp_path: Path, order: Callable[..., Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradinversion.cluster.state_writer._BETWEEN_ROUNDS_SECONDS", 600.0)
    one = process()
    one.reply(order(0, save=0))
    there: list[list[str]] = []
    one.hooks[10] = lambda: there.append(files(tmp_path))
    one.hooks[11] = lambda: there.append([one.loop.saved(0).name])
    one.reply(order(1, save=1))
    assert there == [[], files(tmp_path)]
    # Asked again, nobody waits for a consensus; nor does anybody after the last step.
    one.reply(order(1, save=1))
    assert one.loop.saved(1).step == 20
    one.reply(order(3, save=3))
    assert one.loop.saved(3).step == 40


def test_the_states_of_two_rounds_can_be_asked_for_at_once(
    process: Callable[..., Any], order: Callable[..., Order]
) -> None:
    one = process()
    first, second = one.save_round(0), one.save_round(1)
    assert one.loop.saved(0) == first
    assert one.loop.saved(1) == second


class _SlowStorage(Storage):
    """Writes nothing before it may."""

    def __init__(self, url: Path) -> None:
        super().__init__(url)
        self.may = threading.Event()

    def write_file(self, name: str, save: Callable[[Path], object]) -> None:
        self.may.wait()
        super().write_file(name, save)


def test_the_descent_goes_on_while_the_state_is_written(
    process: Callable[..., Any], tmp_path: Path, order: Callable[..., Order]
) -> None:
    storage = _SlowStorage(tmp_path)
    one = process(storage=storage)
    images = one.reply(order(0, save=0)).images
    one.reply(order(1))
    storage.may.set()
    state = one.loop.saved(0)
    assert state.step == 10
    assert torch.equal(read_tensors(storage, state)["images"], images)


def test_what_this_process_was_not_asked_to_save_is_refused_in_words(process: Callable[..., Any]) -> None:
    with pytest.raises(StorageError, match="the process that was to write the state of seed 7 was lost"):
        process().loop.saved(3)


def test_without_a_storage_nothing_is_left_behind(process: Callable[..., Any], order: Callable[..., Order]) -> None:
    one = process(storage=None)
    one.loop.leave()
    with pytest.raises(StorageError, match="keeps no checkpoints"):
        one.reply(order(0))
    assert torch.equal(process(storage=None).reply(order(0)).images, process().naive()[0][1])


# Async.


@pytest.mark.parametrize("chunk", [1, 3, 10])
def test_in_async_mode_it_descends_on_by_itself(
    process: Callable[..., Any], chunk: int, order: Callable[..., Order]
) -> None:
    one = process(chunk=chunk)
    at_the_end = threading.Event()
    one.hooks[39] = at_the_end.set
    first = one.reply(order(0))
    assert first.account.step >= 10
    at_the_end.wait()
    # The order comes late: everything since the last answer is told, and nothing twice.
    second = one.reply(order(1))
    assert (second.account.step, second.account.outcome) == (40, Outcome.FINISHED)
    assert one.steps == list(range(40))
    rows = [row["step"] for reply in (first, second) for row in reply.account.trace]
    assert rows == [float(step) for step in range(1, 41)]
    last = one.reply(order(2))
    assert last.account.trace == ()
    assert second.account.losses == {name: value for name, value in second.account.trace[-1].items() if name != "step"}


def test_in_async_mode_an_order_brings_the_newest_consensus(
    process: Callable[..., Any], shared: dict[str, Tensor], order: Callable[..., Order]
) -> None:
    one = process(chunk=5)
    stands_still, goes_on = threading.Event(), threading.Event()

    def stand_still() -> None:
        stands_still.set()
        goes_on.wait()

    one.hooks[21] = stand_still
    one.reply(order(0))
    stands_still.wait()
    answer = one.submit(order(2))
    goes_on.set()
    assert answer.result().account.step >= 30
    assert all(seen is None for step, seen in zip(one.steps, one.seen, strict=False) if step < 25)
    told = [seen for step, seen in zip(one.steps, one.seen, strict=False) if 25 <= step < 30]
    assert all(seen is not None and torch.equal(seen, shared["consensus 2"][[1, 0]]) for seen in told)


def test_in_async_mode_nothing_large_is_kept_while_nobody_asks(
    process: Callable[..., Any], order: Callable[..., Order]
) -> None:
    one = process(chunk=1)
    at_the_end = threading.Event()
    one.hooks[39] = at_the_end.set
    one.reply(order(0))
    at_the_end.wait()
    unseen = one.loop._stint.unseen
    assert len(unseen) > 0
    # Without their images: an agent that nobody asks for hours would keep hundreds of batches.
    assert not any(isinstance(value, Tensor) for account in unseen for value in vars(account).values())


def test_in_async_mode_an_error_between_two_orders_is_told_with_the_next(
    process: Callable[..., Any], order: Callable[..., Order]
) -> None:
    one = process(chunk=5)
    failing = threading.Event()

    def fail() -> None:
        failing.set()
        raise RuntimeError("the device is gone")

    one.hooks[30] = fail
    one.reply(order(0))
    failing.wait()
    with pytest.raises(RuntimeError, match="the device is gone"):
        one.reply(order(1))
    assert one.reply(order(1)).account.step >= 20  # from the origin again


def test_in_async_mode_a_process_that_leaves_stands_still(
    process: Callable[..., Any], order: Callable[..., Order]
) -> None:
    one = process(chunk=5)
    one.hooks[17] = one.loop.leave
    one.reply(order(0))
    left = one.reply(order(3)).left
    assert left is not None
    assert left.step == 18
    assert one.steps == list(range(18))
    elsewhere = process(chunk=5)
    assert elsewhere.reply(order(3, step=18, state=left)).account.step == 40
    assert elsewhere.steps == list(range(18, 40))


def test_in_async_mode_a_newer_coordinator_s_order_begins_at_its_origin(
    process: Callable[..., Any], order: Callable[..., Order]
) -> None:
    one = process(chunk=5)
    one.reply(order(0, save=0))
    state = one.loop.saved(0)
    one.reply(order(2))
    reply = one.reply(order(1, since=1, epoch=2, stint=(2, 1), step=state.step, state=state))
    assert 20 <= reply.account.step <= 40
    began = [index for index, step in enumerate(one.steps) if step == state.step][-1]
    assert one.steps[began:] == list(range(state.step, one.steps[-1] + 1))


def test_notes_about_the_objective_are_told_once(process: Callable[..., Any], order: Callable[..., Order]) -> None:
    one = process()
    one.reply(order(0))
    one.loop._agent._objective.messages.append("a term is skipped")
    assert one.reply(order(1)).notes == ()
    assert one.reply(order(1, stint=(1, 2))).notes == ("a term is skipped",)


# In the middle of a round.


@pytest.mark.parametrize("chunk", [None, 4])
def test_a_state_in_the_middle_of_a_round_goes_on_to_the_same_images(
    process: Callable[..., Any], tmp_path: Path, order: Callable[..., Order], chunk: int | None
) -> None:
    one = process(chunk=chunk)
    asked: list[Any] = []
    ready = threading.Event()

    def ask() -> None:
        thread = threading.Thread(target=lambda: asked.append(one.loop.save_within(1, 5)))
        thread.start()
        while one.loop._asked.empty():
            pass
        ready.set()

    one.hooks[13] = ask
    reply = one.reply(order(1))
    assert ready.is_set()
    while not asked:
        pass
    ((state, account),) = asked
    assert state.name.startswith("checkpoints/round-000001-part-000005/seed-7.")
    assert state.step == 14
    assert [row["step"] for row in account.trace][-1] <= 14
    agent = one.make(one._target)
    agent.restore(read_tensors(Storage(tmp_path), state))
    assert agent.step == 14
    if chunk is None:
        agent.run(20, None)
        assert torch.equal(agent.images, reply.images)
        whole = process().reply(order(1))
        assert torch.equal(whole.images, reply.images)
        assert [row["step"] for row in whole.account.trace] == [row["step"] for row in reply.account.trace]


def test_a_seed_that_has_ended_its_round_saves_that_end_with_all_that_it_told(
    process: Callable[..., Any], order: Callable[..., Order]
) -> None:
    one = process()
    reply = one.reply(order(1))
    state, account = one.loop.save_within(1, 1)
    assert state.step == 20
    assert account.trace == reply.account.trace
    assert one.reply(order(2)).account.step == 30  # and goes on with the next one


def test_a_process_that_stands_nowhere_has_nothing_to_save(process: Callable[..., Any]) -> None:
    with pytest.raises(StorageError, match="had not begun its round yet"):
        process().loop.save_within(0, 1)

"""Rounds on their way into the storage, one after the other, beside the rounds that go on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from gradinversion.agents import Account, Failure, Outcome
from gradinversion.coordinator import CheckpointStore, FencedError, StateFile, Storage, StorageError, state_name
from gradinversion.coordinator.progress import Progress
from gradinversion.coordinator.saving import Saving

SEEDS = (10, 11, 12)


def state(index: int, position: int, writer: str = "w") -> StateFile:
    return StateFile(state_name(index, SEEDS[position], writer), "0" * 64, 9, step=index)


class Store:
    """Takes down what is committed; ``error`` is raised, and while ``open`` is not set nothing is answered."""

    def __init__(self) -> None:
        self.rounds: list[tuple[int, dict[int, StateFile], Mapping[str, Any]]] = []
        self.error: Exception | None = None
        self.open = threading.Event()
        self.open.set()

    def commit(self, index: int, files: Any, facts: Any, tensors: Any, part: int | None = None) -> None:
        self.open.wait()
        if self.error is not None:
            raise self.error
        self.rounds.append((index, dict(files), facts))

    def drop(self, index: int, part: int) -> None:
        """Nothing was written."""


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    store.open.set()  # no thread stays behind


@pytest.fixture
def notes() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def saving(store: Store, notes: list[tuple[str, str]]) -> Saving:
    return Saving(store, None, SEEDS, lambda kind, text, **more: notes.append((kind, text)))  # type: ignore[arg-type]


def complete(saving: Saving, index: int, positions: tuple[int, ...] = (0, 1)) -> None:
    saving.begin(index, positions)
    for position in positions:
        saving.add_state(index, position, state(index, position))
    saving.add_progress(index, Progress())


def arrived(saving: Saving) -> None:
    """Wait until the storage has answered, without taking the answer."""
    assert saving._written is not None
    wait([saving._written[1]])


@pytest.mark.parametrize("last", ["progress", "state"])
def test_a_round_is_written_when_its_last_part_comes(saving: Saving, store: Store, last: str) -> None:
    saving.begin(4, (0, 2))
    assert saving.pending
    if last == "state":
        saving.add_progress(4, Progress(seconds=3.0))
    saving.add_state(4, 2, state(4, 2))
    saving.add_state(4, 0, state(4, 0))
    if last == "progress":
        assert saving.poll(wait=True)[1] == {}
        saving.add_progress(4, Progress(seconds=3.0))
    # By seed in the storage, by position for the coordinator.
    assert saving.poll(wait=True) == (4, {0: state(4, 0), 2: state(4, 2)})
    ((index, files, facts),) = store.rounds
    assert (index, files, facts["seconds"]) == (4, {10: state(4, 0), 12: state(4, 2)}, 3.0)
    assert saving.newest == 4
    assert saving.free
    assert saving.poll()[1] == {}


def test_rounds_follow_each_other_into_the_storage_and_no_more_than_two_are_awaited(
    saving: Saving, store: Store
) -> None:
    store.open.clear()
    complete(saving, 0)
    complete(saving, 1)
    was_free = saving.free
    assert was_free
    saving.begin(2, (0, 1))
    assert not saving.free
    assert saving.poll()[1] == {}
    assert saving.newest == -1
    store.open.set()
    arrived(saving)
    # The second one is not written before the first is told: until then, lost processes begin from older states.
    assert len(store.rounds) == 1
    assert saving.poll() == (0, {0: state(0, 0), 1: state(0, 1)})
    assert (saving.newest, saving.free, saving.pending) == (0, True, True)
    assert saving.poll(wait=True) == (1, {0: state(1, 0), 1: state(1, 1)})
    assert saving.pending
    saving.add_progress(2, Progress())
    saving.add_state(2, 0, state(2, 0))
    saving.add_state(2, 1, "the disk is full")
    assert not saving.pending


def test_a_later_round_waits_for_the_states_of_the_one_before(saving: Saving, store: Store) -> None:
    saving.begin(0, (0, 1))
    saving.add_progress(0, Progress())
    complete(saving, 1)
    assert saving.poll(wait=True)[1] == {}
    saving.add_state(0, 1, state(0, 1))
    saving.add_state(0, 0, state(0, 0))
    assert saving.poll(wait=True)[0] == 0
    assert saving.poll(wait=True)[0] == 1
    assert [index for index, _, _ in store.rounds] == [0, 1]


@pytest.mark.parametrize("how", ["failed", "left"])
def test_a_round_that_is_given_up_lets_the_next_one_pass(saving: Saving, store: Store, how: str) -> None:
    saving.begin(0, (2,))
    complete(saving, 1)
    if how == "failed":
        saving.add_state(0, 2, "the disk is full")
    else:
        saving.lost(2)
    assert saving.poll(wait=True)[0] == 1


def test_a_seed_that_left_is_waited_for_in_no_round(saving: Saving, store: Store) -> None:
    for index in (0, 1):
        saving.begin(index, (0, 1))
        saving.add_progress(index, Progress())
        saving.add_state(index, 0, state(index, 0))
    saving.lost(1)
    assert saving.poll(wait=True) == (0, {0: state(0, 0)})
    assert saving.poll(wait=True) == (1, {0: state(1, 0)})


def test_a_round_that_failed_does_not_hold_up_the_next_one(saving: Saving, store: Store) -> None:
    store.open.clear()
    store.error = StorageError("no connection")
    complete(saving, 0)
    complete(saving, 1)
    store.open.set()
    arrived(saving)
    store.error = None
    assert saving.poll(wait=True) == (0, {})
    assert saving.poll(wait=True)[0] == 1
    assert saving.newest == 1


def test_what_progress_became_since_is_not_written(saving: Saving, store: Store) -> None:
    store.open.clear()
    progress = Progress()
    progress.history.append({"step": 1.0})
    saving.begin(0, (0,))
    saving.add_progress(0, progress)
    progress.history.append({"step": 2.0})
    saving.add_state(0, 0, state(0, 0))
    store.open.set()
    saving.poll(wait=True)
    assert store.rounds[0][2]["history"] == [{"step": 1.0}]


def test_what_is_not_of_this_round_is_passed_over(saving: Saving, store: Store) -> None:
    saving.add_state(0, 0, state(0, 0))  # no round at all
    saving.add_progress(0, Progress())
    saving.begin(1, (0, 1))
    saving.add_state(0, 0, state(0, 0))
    saving.add_state(0, 1, "an old failure")
    saving.add_state(1, 2, "not wanted")
    saving.add_progress(0, Progress(seconds=9.0))
    saving.add_state(1, 0, state(1, 0))
    saving.add_state(1, 1, state(1, 1))
    assert store.rounds == []
    saving.add_progress(1, Progress())
    assert saving.poll(wait=True) == (1, {0: state(1, 0), 1: state(1, 1)})


def test_a_state_that_is_missing_gives_the_round_up_and_the_next_one_is_saved(
    saving: Saving, store: Store, notes: list[tuple[str, str]]
) -> None:
    saving.begin(0, (0, 1))
    saving.add_state(0, 0, state(0, 0))
    saving.add_state(0, 1, "the disk is full")
    assert saving.free
    assert [kind for kind, _ in notes] == ["checkpoint_failed"]
    assert "the disk is full" in notes[0][1]
    saving.add_progress(0, Progress())  # too late
    complete(saving, 1)
    saving.poll(wait=True)
    assert [index for index, _, _ in store.rounds] == [1]
    assert [kind for kind, _ in notes] == ["checkpoint_failed", "checkpoint_saved_again"]
    complete(saving, 2)
    saving.poll(wait=True)
    assert len(notes) == 2


def test_a_manifest_that_cannot_be_written_is_said_and_tried_with_the_next_round(
    saving: Saving, store: Store, notes: list[tuple[str, str]]
) -> None:
    store.error = StorageError("no connection")
    complete(saving, 0)
    assert saving.poll(wait=True)[1] == {}
    assert saving.newest == -1
    assert "no connection" in notes[0][1]
    store.error = None
    complete(saving, 1)
    assert saving.poll(wait=True)[1] != {}
    assert [kind for kind, _ in notes] == ["checkpoint_failed", "checkpoint_saved_again"]


@pytest.mark.parametrize("told", [state(0, 1, "other"), "the process was lost"], ids=["state", "failure"])
def test_a_round_on_its_way_is_not_changed_any_more(
    saving: Saving, store: Store, notes: list[tuple[str, str]], told: Any
) -> None:
    store.open.clear()
    complete(saving, 0)
    saving.add_state(0, 1, told)
    saving.lost(1)
    assert saving.pending
    store.open.set()
    # What the coordinator goes on from is what the manifest says.
    assert saving.poll(wait=True) == (0, {0: state(0, 0), 1: state(0, 1)})
    assert store.rounds[0][1] == {10: state(0, 0), 11: state(0, 1)}
    assert notes == []


def test_that_another_coordinator_took_over_is_heard_even_where_a_state_is_told_twice(
    saving: Saving, store: Store
) -> None:
    store.open.clear()
    store.error = FencedError("taken over")
    complete(saving, 0)
    saving.add_state(0, 1, "the process was lost")
    store.open.set()
    with pytest.raises(FencedError, match="taken over"):
        saving.poll(wait=True)


@pytest.mark.parametrize("had_saved", [True, False])
def test_a_seed_that_left_is_not_waited_for(saving: Saving, store: Store, had_saved: bool) -> None:
    saving.begin(0, (0, 1))
    if had_saved:
        saving.add_state(0, 1, state(0, 1))
    saving.lost(1)
    saving.lost(2)  # had no part
    saving.add_progress(0, Progress())
    saving.add_state(0, 1, "lost while it wrote")
    assert saving.pending
    saving.add_state(0, 0, state(0, 0))
    assert saving.poll(wait=True) == (0, {0: state(0, 0)})
    assert store.rounds[0][1] == {10: state(0, 0)}


def test_the_last_missing_seed_s_leaving_makes_the_round_whole(saving: Saving) -> None:
    saving.begin(0, (0, 1))
    saving.add_progress(0, Progress())
    saving.add_state(0, 0, state(0, 0))
    saving.lost(1)
    assert saving.poll(wait=True) == (0, {0: state(0, 0)})


def test_a_round_that_everybody_left_is_forgotten(saving: Saving, store: Store) -> None:
    saving.begin(0, (0, 1))
    saving.add_progress(0, Progress())
    saving.lost(0)
    saving.lost(1)
    saving.lost(1)
    assert not saving.pending  # else the run would wait for it at its end, for ever
    assert saving.poll(wait=True)[1] == {}
    assert store.rounds == []


def test_without_a_store_nothing_is_ever_free() -> None:
    saving = Saving(None, None, SEEDS, lambda *arguments, **more: None)
    assert not saving.free
    assert saving.poll(wait=True)[1] == {}
    saving.write_curves(Progress(), wait=True)
    saving.close()


# The curves.


def account() -> Account:
    failure = Failure(2, Outcome.DIVERGED, 1, 3)
    return Account(10, 0, 2, {}, Outcome.RUNNING, None, 1.0, (failure,), ({"step": 2.0},))


def test_curves_and_events_are_written(tmp_path: Path) -> None:
    saving = Saving(None, Storage(tmp_path), SEEDS, lambda *arguments, **more: None)
    progress = Progress()
    progress.record(0, account())
    saving.write_curves(progress, wait=True)
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (row["step"], row["seed"]) == (2.0, 10)
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert event["kind"] == "seed_diverged"
    assert "failed at step 2" in event["message"]
    saving.close()


def test_curves_are_skipped_while_the_last_ones_are_written(tmp_path: Path, store: Store) -> None:
    saving = Saving(store, Storage(tmp_path), SEEDS, lambda *arguments, **more: None)  # type: ignore[arg-type]
    store.open.clear()
    complete(saving, 0)
    # One writer: the curves of the first call wait behind the round.
    saving.write_curves(Progress())
    progress = Progress()
    progress.record(0, account())
    saving.write_curves(progress)
    store.open.set()
    saving.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_curves_that_cannot_be_written_are_said(tmp_path: Path, notes: list[tuple[str, str]]) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    saving = Saving(None, Storage(tmp_path), SEEDS, lambda kind, text, **more: notes.append((kind, text)))
    saving.write_curves(Progress(), wait=True)
    assert notes[0][0] == "checkpoint_failed"
    assert "metrics.jsonl" in notes[0][1]
    saving.close()


# The end.


def test_close_waits_for_what_is_being_written(saving: Saving, store: Store) -> None:
    store.open.clear()
    complete(saving, 0)
    threading.Thread(target=store.open.set).start()
    saving.close()
    assert [index for index, _, _ in store.rounds] == [0]
    assert saving.newest == 0


@pytest.mark.parametrize("error", [StorageError("away"), FencedError("taken over")])
def test_close_passes_over_what_fails(saving: Saving, store: Store, error: Exception) -> None:
    store.error = error
    complete(saving, 0)
    saving.close()
    assert saving.newest == -1


def test_close_does_not_wait_for_what_was_never_complete(saving: Saving) -> None:
    saving.begin(0, (0, 1))
    saving.add_state(0, 0, state(0, 0))
    saving.close()


def test_a_storage_that_hangs_keeps_no_run_from_ending(
    saving: Saving, store: Store, notes: list[tuple[str, str]]
) -> None:
    store.open.clear()
    complete(saving, 0)
    saving.close(seconds=0.0)
    assert [kind for kind, _ in notes] == ["checkpoint_failed"]
    assert "did not answer" in notes[0][1]


def test_a_second_coordinator_fences_the_first(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    first, second = CheckpointStore(storage, {}), CheckpointStore(storage, {})
    saving = Saving(first, storage, SEEDS, lambda *arguments, **more: None)
    first.claim()
    second.claim()
    complete(saving, 0)
    with pytest.raises(FencedError):
        saving.poll(wait=True)
    assert saving.free
    saving.close()

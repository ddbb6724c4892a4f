"""Checkpoints in the middle of rounds (`coordinator.save_every`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import Account, Outcome
from gradinversion.coordinator import AttackConfig, CheckpointStore, StateFile, Storage, read_tensors, state_name
from gradinversion.coordinator.identity import identity
from gradinversion.coordinator.parts import Part
from gradinversion.coordinator.progress import Progress
from gradinversion.coordinator.saving import Saving
from gradinversion.refusal import ConfigError

SEEDS = (10, 11)


@pytest.fixture
def config(config: AttackConfig) -> AttackConfig:
    """Rounds of ten steps, a consensus from step 20 on; a checkpoint whenever the coordinator is asked."""
    return replace(config, coordinator=replace(config.coordinator, save_every="0.000001s"))


class _Killed(KeyboardInterrupt):
    pass


def killed_after(group: Any, parts: int) -> None:
    """The process dies in the middle of a round, once so many checkpoints of it are whole."""
    idle = group.listener.idle

    def watched() -> None:
        idle()
        written = group.listener._saving._written
        if len(group.parts) >= parts and written is not None:
            written[1].result()
            raise _Killed

    group.listener.idle = watched


@pytest.mark.parametrize("parts", [1, 4, 8])
def test_a_run_that_is_lost_within_a_round_goes_on_there_and_ends_at_the_same_images(
    run: Callable[..., Any], tmp_path: Path, parts: int
) -> None:
    whole = run()()
    one = run(out=tmp_path)
    one.group.pauses = {3, 6, 14, 17, 25, 28, 33, 36}
    one.before = {0: lambda: killed_after(one.group, parts)}
    with pytest.raises(_Killed):
        one()
    assert len(one.group.parts) >= parts
    kept, _ = one.coordinator._store.latest()
    further = [state for state in kept.states.values() if state.step > 10 * (kept.round + 1)]
    assert further
    again = run(out=tmp_path, resume=True)
    result = again()
    assert again.group.rounds[0][0].current.round == kept.round + 1
    assert {order.origin.state for order in again.group.rounds[0].values()} == set(kept.states.values())
    assert result.outcome is Outcome.FINISHED
    assert torch.equal(result.images, whole.images)
    steps = [(row["round"], row["seed"], row["step"]) for row in whole.history]
    assert [(row["round"], row["seed"], row["step"]) for row in result.history] == steps
    assert [row["total"] for row in result.history] == [row["total"] for row in whole.history]
    # What is left are the last two rounds alone.
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert names == ["round-000002", "round-000003"]


def test_a_process_that_is_lost_after_a_later_part_begins_where_the_run_continued(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    whole = run()()
    one = run(out=tmp_path)
    one.group.pauses = {13}
    one.before = {1: lambda: killed_after(one.group, len(one.group.parts) + 1)}
    with pytest.raises(_Killed):
        one()
    again = run(out=tmp_path, resume=True)
    again.group.pauses = {16, 18}
    losses: list[StateFile] = []

    def loses_one() -> None:
        """The first seed's process is lost at the end of the round, and another one makes the round again."""
        carry_out = again.group.run

        def twice(position: int, order: Any) -> Account:
            account = carry_out(position, order)
            if position == 0 and not losses:
                again.coordinator._saving.poll(wait=True)
                losses.append(order.origin.state)
                again.group.begin(position, order)
                carry_out(position, order)
            return account

        again.group.run = twice

    again.before = {0: loses_one}
    result = again()
    assert len(again.group.parts) > 1
    assert "-part-" in losses[0].name
    assert torch.equal(result.images, whole.images)


def test_without_save_every_rounds_alone_are_saved(
    run: Callable[..., Any], config: AttackConfig, tmp_path: Path
) -> None:
    rounds = replace(config, coordinator=replace(config.coordinator, save_every=None))
    one = run(rounds, out=tmp_path)
    one.group.pauses = {3, 14}
    one()
    assert one.group.parts == []


def test_how_often_a_run_is_saved_does_not_make_it_another_run(config: AttackConfig, update: Any) -> None:
    hours = replace(config, coordinator=replace(config.coordinator, save_every="2h"))
    assert hours.coordinator.save_seconds == 7200
    assert identity(hours, update) == identity(config, update)


@pytest.mark.parametrize("wrong", ["5", "0s", "m", "-1m", "5 m", ""])
def test_a_time_that_cannot_be_read_is_refused(config: AttackConfig, wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"coordinator.save_every=.*such as 90s, 5m or 2h, or none"):
        replace(config.coordinator, save_every=wrong)


# The store.


def commit(store: CheckpointStore, storage: Storage, index: int, part: int | None, step: int) -> None:
    from gradinversion.coordinator import write_state

    state = write_state(storage, state_name(index, 0, "w", part), {"images": torch.full((2,), step)}, step)
    store.commit(index, {0: state}, Progress().facts(), {}, part)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


@pytest.fixture
def checkpoints(storage: Storage) -> CheckpointStore:
    found = CheckpointStore(storage, {"seed": 0})
    found.claim()
    return found


def folders(storage: Storage) -> list[str]:
    return [name for name in storage.names("checkpoints") if name.startswith("round")]


def test_a_part_is_newer_than_the_round_before_and_older_than_the_end_of_its_own(
    storage: Storage, checkpoints: CheckpointStore
) -> None:
    reader = CheckpointStore(storage, {"seed": 0})
    commit(checkpoints, storage, 0, 1, 3)
    assert reader.latest()[0].round == -1  # type: ignore[union-attr]
    commit(checkpoints, storage, 0, None, 10)
    assert folders(storage) == ["round-000000"]
    commit(checkpoints, storage, 1, 2, 13)
    commit(checkpoints, storage, 1, 3, 16)
    found, messages = reader.latest()
    assert found is not None
    assert (found.round, found.states[0].step, messages) == (0, 16, ())
    assert folders(storage) == ["round-000000", "round-000001-part-000003"]
    commit(checkpoints, storage, 1, None, 20)
    found, _ = reader.latest()
    assert found is not None
    assert (found.round, found.states[0].step) == (1, 20)
    assert folders(storage) == ["round-000000", "round-000001"]


def test_the_part_that_a_run_continued_from_stays_until_a_second_round_has_ended(
    storage: Storage, checkpoints: CheckpointStore
) -> None:
    commit(checkpoints, storage, 0, None, 10)
    commit(checkpoints, storage, 1, 1, 13)
    again = CheckpointStore(storage, {"seed": 0})
    begun, _ = again.latest()
    assert begun is not None
    again.claim()
    commit(again, storage, 1, 2, 16)
    commit(again, storage, 1, 3, 18)
    whole, first = ["round-000000"], "round-000001-part-000001"
    assert folders(storage) == [*whole, first, "round-000001-part-000003"]
    again.settle()  # no round has ended: lost processes begin there yet
    assert read_tensors(storage, begun.states[0])["images"].tolist() == [13, 13]
    commit(again, storage, 1, None, 20)
    assert folders(storage) == [*whole, "round-000001", first]
    commit(again, storage, 2, 4, 23)
    assert folders(storage) == [*whole, "round-000001", first, "round-000002-part-000004"]
    commit(again, storage, 2, None, 30)
    assert folders(storage) == ["round-000001", "round-000002"]


def test_it_stays_where_the_end_of_its_own_round_was_not_saved_and_goes_with_the_run(
    storage: Storage, checkpoints: CheckpointStore
) -> None:
    commit(checkpoints, storage, 1, 1, 13)
    again = CheckpointStore(storage, {"seed": 0})
    again.latest()
    again.claim()
    commit(again, storage, 2, None, 30)
    assert folders(storage) == ["round-000001-part-000001", "round-000002"]
    again.settle()
    assert folders(storage) == ["round-000002"]


def test_a_torn_part_is_passed_over_with_a_sentence(storage: Storage, checkpoints: CheckpointStore) -> None:
    commit(checkpoints, storage, 0, None, 10)
    commit(checkpoints, storage, 1, 1, 13)
    (state,) = (storage.path / "checkpoints/round-000001-part-000001").glob("seed-0*")
    state.write_bytes(b"short")
    found, messages = checkpoints.latest()
    assert found is not None
    assert (found.round, found.states[0].step) == (0, 10)
    assert "Skipped a torn checkpoint" in messages[0]


# On the way.


class Store:
    """Takes down what is committed."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, Any, int | None]] = []
        self.dropped: list[tuple[int, int]] = []

    def commit(self, index: int, files: Any, facts: Any, tensors: Any, part: int | None = None) -> None:
        self.saved.append((index, {"steps": sorted(file.step for file in files.values()), **facts}, part))

    def drop(self, index: int, part: int) -> None:
        self.dropped.append((index, part))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("gradinversion.coordinator.saving.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def saving(store: Store, clock: list[float], notes: list[str]) -> Saving:
    return Saving(store, None, SEEDS, lambda kind, text, **more: notes.append(text), 300.0)  # type: ignore[arg-type]


def found(part: Part, position: int, step: int) -> tuple[StateFile, Account]:
    name = state_name(part.round, SEEDS[position], "w", part.number)
    trace = ({"step": float(step), "total": 1.0},)
    return StateFile(name, "0" * 64, 9, step), Account(SEEDS[position], 0, step, {}, Outcome.RUNNING, trace=trace)


def test_a_part_is_due_after_the_time_and_again_after_as_much(saving: Saving, store: Store, clock: list[float]) -> None:
    assert saving.due() is None  # no round is under way
    saving.begin(4, (0, 1))
    saving.enter(4, (0, 1), Progress(seconds=7.0), (40, 50))
    clock[0] = 299.0
    assert saving.due() is None
    clock[0] = 301.0
    part = saving.due()
    assert part is not None
    assert (part.round, part.positions) == (4, (0, 1))
    clock[0] = 700.0
    assert saving.due() is None  # the one before is not whole yet
    saving.add_state_within(part, 0, found(part, 0, 42))
    saving.add_state_within(part, 1, found(part, 1, 50))
    assert saving.poll(wait=True)[1] == {}
    ((index, facts, number),) = store.saved
    assert (index, number, facts["steps"], facts["seconds"]) == (4, part.number, [42, 50], 7.0)
    assert [(row["seed"], row["step"]) for row in facts["history"]] == [(10, 42.0), (11, 50.0)]
    assert saving.newest == -1  # no round is whole
    later = saving.due()
    assert later is not None
    assert later.number > part.number
    saving.leave()
    assert saving.due() is None


@pytest.mark.parametrize("step", [39, 51])
def test_a_state_from_outside_the_round_makes_no_checkpoint(
    saving: Saving, store: Store, clock: list[float], notes: list[str], step: int
) -> None:
    saving.enter(4, (0, 1), Progress(), (40, 50))
    clock[0] = 301.0
    part = saving.due()
    assert part is not None
    saving.add_state_within(part, 0, found(part, 0, 42))
    saving.add_state_within(part, 1, found(part, 1, step))
    assert (saving.pending, store.saved, notes) == (False, [], [])


def test_a_state_from_outside_the_round_makes_none_after_the_round_was_left_either(
    saving: Saving, store: Store, clock: list[float]
) -> None:
    saving.enter(4, (0, 1), Progress(), (40, 50))
    clock[0] = 301.0
    part = saving.due()
    assert part is not None
    saving.leave()
    saving.add_state_within(part, 0, found(part, 0, 42))
    saving.add_state_within(part, 1, found(part, 1, 60))
    assert (saving.pending, store.saved) == (False, [])


def test_what_a_round_waited_for_before_it_began_makes_no_part_due(saving: Saving, clock: list[float]) -> None:
    clock[0] = 10_000.0
    saving.enter(0, (0, 1), Progress(), (0, 10))
    clock[0] += 299.0
    assert saving.due() is None
    clock[0] += 2.0
    assert saving.due() is not None


def test_a_part_that_was_given_up_is_removed_when_the_next_one_is_begun(
    saving: Saving, store: Store, clock: list[float]
) -> None:
    saving.enter(4, (0, 1), Progress(), (40, 50))
    numbers = []
    for _ in range(3):
        clock[0] += 301.0
        part = saving.due()
        assert part is not None
        numbers.append(part.number)
        saving.add_state_within(part, 0, found(part, 0, 42))
        saving.add_state_within(part, 1, None)
        saving.add_state_within(part, 0, found(part, 0, 42))  # too late
    saving.close()
    # Not the last one: who was asked writes yet.
    assert store.dropped == [(4, number) for number in numbers[:-1]]


def test_a_seed_that_cannot_be_saved_gives_the_part_up_and_the_round_is_saved_all_the_same(
    saving: Saving, store: Store, clock: list[float], notes: list[str]
) -> None:
    saving.begin(4, (0, 1))
    saving.enter(4, (0, 1), Progress(), (40, 50))
    clock[0] = 301.0
    part = saving.due()
    assert part is not None
    for position in (0, 1):
        saving.add_state(4, position, StateFile(state_name(4, SEEDS[position], "w"), "0" * 64, 9, 50))
    saving.add_progress(4, Progress())
    assert store.saved == []  # a part of the round goes before its end
    saving.add_state_within(part, 0, "the disk is full")
    saving.add_state_within(part, 1, found(part, 1, 42))
    assert saving.poll(wait=True)[0] == 4
    assert [(index, number) for index, _, number in store.saved] == [(4, None)]
    assert notes == [
        "A round was not saved: the disk is full; the last good checkpoint stays, and the run goes on.",
        "Checkpoints are saved again.",
    ]

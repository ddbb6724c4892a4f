"""The writer of an agent's states by itself: what it promises, and what it makes of a failure."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gradinversion.cluster.state_writer import StateWriter
from gradinversion.coordinator import StateFile, Storage, StorageError, read_tensors


def agent(step: int) -> Any:
    return SimpleNamespace(state=lambda: {"images": torch.full((2,), float(step))}, step=step)


def write(writer: StateWriter, round: int, step: int) -> StateFile:
    written = writer.promise(round)
    assert written is not None
    writer.write(round, agent(step), written)
    return writer.saved(round)


def test_a_promised_state_is_the_agent_s_at_that_moment(tmp_path: Path) -> None:
    writer = StateWriter(7, Storage(tmp_path))
    state = write(writer, 3, 40)
    assert state.name.startswith(f"checkpoints/round-000003/seed-7.{writer.token}-")
    assert state.step == 40
    assert torch.equal(read_tensors(Storage(tmp_path), state)["images"], torch.full((2,), 40.0))


def test_nothing_is_promised_twice_unless_it_failed(tmp_path: Path) -> None:
    writer = StateWriter(7, Storage(tmp_path))
    first = writer.promise(0)
    assert first is not None
    assert writer.promise(0) is None  # on its way
    first.set_exception(StorageError("full"))
    assert writer.promise(0) is not None
    writer.forget()
    assert writer.promise(0) is not None


def test_an_agent_whose_state_cannot_be_read_fails_here_and_where_the_state_is_awaited(tmp_path: Path) -> None:
    writer = StateWriter(7, Storage(tmp_path))
    written: Future[StateFile] | None = writer.promise(0)
    assert written is not None

    def fail() -> None:
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        writer.write(0, SimpleNamespace(state=fail, step=1), written)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="the device is gone"):
        writer.saved(0)


def test_what_was_never_promised_or_is_long_ago_is_refused_in_words(tmp_path: Path) -> None:
    writer = StateWriter(7, Storage(tmp_path))
    kept = [write(writer, round, 10 * round) for round in range(4)][1:]
    assert [writer.saved(round) for round in (1, 2, 3)] == kept
    for round in (0, 9):
        with pytest.raises(StorageError, match="the process that was to write the state of seed 7 was lost"):
            writer.saved(round)


def test_two_files_of_one_round_have_two_names(tmp_path: Path) -> None:
    writer = StateWriter(7, Storage(tmp_path))
    first = write(writer, 0, 10)
    writer.forget()
    assert write(writer, 0, 10).name != first.name

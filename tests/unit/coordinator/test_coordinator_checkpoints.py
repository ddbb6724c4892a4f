"""A checkpoint is a whole round of the same run, or it is refused by name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from gradinversion.coordinator import CheckpointError, CheckpointStore, read_tensors, write_tensors

IDENTITY = {"seed": 0, "agents.iterations": 100}


def save_round(store: CheckpointStore, index: int) -> Path:
    folder = store.prepare(index)
    files = {"seed-0.safetensors": write_tensors(folder / "seed-0.safetensors", {"images": torch.full((2,), index)})}
    store.commit(folder, index, files, {"messages": [f"round {index}"]})
    return folder


def test_the_newest_whole_round_is_found_and_two_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, IDENTITY)
    for index in range(4):
        save_round(store, index)
    checkpoint, messages = store.latest()
    assert checkpoint is not None
    assert checkpoint.round == 3
    assert checkpoint.progress == {"messages": ["round 3"]}
    assert messages == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000002", "round-000003"]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none", IDENTITY).latest() == (None, ())


@pytest.mark.parametrize("damage", ["no manifest", "torn manifest", "torn file", "missing file", "foreign path"])
def test_a_torn_round_is_named_and_the_one_before_it_used(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path, IDENTITY)
    save_round(store, 0)
    folder = save_round(store, 1)
    manifest, file = folder / "manifest.json", folder / "seed-0.safetensors"
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        manifest.write_bytes(manifest.read_bytes()[:40])
    elif damage == "torn file":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing file":
        file.unlink()
    else:
        manifest.write_text(manifest.read_text().replace("seed-0.safetensors", "../round-000000/seed-0.safetensors"))
    checkpoint, messages = store.latest()
    assert checkpoint is not None
    assert checkpoint.round == 0
    assert len(messages) == 1
    assert "round-000001" in messages[0]


def test_another_run_is_refused_with_every_difference(tmp_path: Path) -> None:
    save_round(CheckpointStore(tmp_path, IDENTITY), 0)
    other = CheckpointStore(tmp_path, {"seed": 1, "agents.iterations": 200})
    with pytest.raises(CheckpointError) as error:
        other.latest()
    assert "seed: 0 there, 1 now" in str(error.value)
    assert "agents.iterations: 100 there, 200 now" in str(error.value)


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"x": torch.zeros(1)})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_tensors(path, {"x": torch.ones(1)})
    assert float(read_tensors(path)["x"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"not a tensor file")
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        read_tensors(path)

"""A checkpoint is a whole round of the same run, or it is refused by name."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import math
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.coordinator.checkpoints import CheckpointStore, FencedError, state_name
from gradinversion.storage.folders import AbsentError, PassingError, Storage, StorageError
from gradinversion.storage.tensor_file import CheckpointError, StateFile, read_tensors, write_state, write_tensors
from safetensors.torch import save

IDENTITY = {"seed": 0, "agents.iterations": 100}
_NAMES = itertools.count()


@pytest.fixture(params=["disk", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(tmp_path if request.param == "disk" else f"memory://checkpoints-{next(_NAMES)}/out")


@pytest.fixture
def store(storage: Storage) -> CheckpointStore:
    store = CheckpointStore(storage, IDENTITY)
    store.claim()
    return store


def write_states(storage: Storage, index: int, writer: str = "w") -> dict[int, StateFile]:
    return {
        seed: write_state(storage, state_name(index, seed, writer), {"images": torch.full((2,), index)}, 10 * index)
        for seed in (0, 3)
    }


def save_round(store: CheckpointStore, storage: Storage, index: int, writer: str = "w") -> dict[int, StateFile]:
    states = write_states(storage, index, writer)
    store.commit(index, states, {"messages": [f"round {index}"]}, {"consensus": torch.full((3,), index)})
    return states


def rounds(storage: Storage) -> list[str]:
    return [name for name in storage.names("checkpoints") if name.startswith("round-")]


def test_the_newest_whole_round_is_found_and_two_are_kept(store: CheckpointStore, storage: Storage) -> None:
    for index in range(4):
        states = save_round(store, storage, index)
    checkpoint, messages = store.latest()
    assert checkpoint is not None
    assert checkpoint.round == 3
    assert checkpoint.progress == {"messages": ["round 3"]}
    assert checkpoint.states == states
    assert checkpoint.states[3].step == 30
    assert read_tensors(storage, checkpoint.states[3])["images"].tolist() == [3, 3]
    assert checkpoint.tensors["consensus"].tolist() == [3, 3, 3]
    assert messages == ()
    assert rounds(storage) == ["round-000002", "round-000003"]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert CheckpointStore(Storage(tmp_path / "none"), IDENTITY).latest() == (None, ())
    assert not (tmp_path / "none").exists()


def test_a_round_without_tensors_and_with_few_seeds(store: CheckpointStore, storage: Storage) -> None:
    states = write_states(storage, 0)
    store.commit(0, {3: states[3]}, {}, {})
    checkpoint, _ = store.latest()
    assert checkpoint is not None
    assert (checkpoint.states, checkpoint.tensors, checkpoint.progress) == ({3: states[3]}, {}, {})


def test_numbers_come_back_as_they_were(store: CheckpointStore) -> None:
    store.commit(0, {}, {"losses": [math.nan, math.inf, 1 / 3]}, {})
    checkpoint, _ = store.latest()
    assert checkpoint is not None
    assert repr(checkpoint.progress["losses"]) == repr([math.nan, math.inf, 1 / 3])


def _change(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


def _rename_to_another_round(manifest: dict[str, Any]) -> None:
    manifest["files"]["../round-000000/seed-0.w.safetensors"] = manifest["files"].pop("seed-0.w.safetensors")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "torn manifest": lambda folder: (folder / "manifest.json").write_bytes(
        (folder / "manifest.json").read_bytes()[:40]
    ),
    "no object": lambda folder: (folder / "manifest.json").write_text("[]"),
    "absurd nesting": lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
    "torn file": lambda folder: (folder / "seed-0.w.safetensors").write_bytes(b"short"),
    "flipped bit": lambda folder: _flip(folder / "seed-3.w.safetensors"),
    "missing file": lambda folder: (folder / "seed-0.w.safetensors").unlink(),
    "torn consensus": lambda folder: _flip(folder / "consensus.safetensors"),
    "missing consensus": lambda folder: (folder / "consensus.safetensors").unlink(),
    "foreign path": _change(_rename_to_another_round),
    "another round": _change(lambda manifest: manifest.update(round=0)),
    "another format": _change(lambda manifest: manifest.update(format=99)),
    "no progress": _change(lambda manifest: manifest.pop("progress")),
    "no checksum": _change(lambda manifest: manifest["files"]["seed-0.w.safetensors"].pop("sha256")),
    "odd seed": _change(lambda manifest: manifest["files"]["seed-0.w.safetensors"].update(seed="x")),
    "odd entry": _change(lambda manifest: manifest["files"].update({"seed-0.w.safetensors": 5})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_round_is_named_and_the_one_before_it_used(tmp_path: Path, damage: str) -> None:
    storage = Storage(tmp_path)
    store = CheckpointStore(storage, IDENTITY)
    store.claim()
    save_round(store, storage, 0)
    save_round(store, storage, 1)
    DAMAGES[damage](tmp_path / "checkpoints" / "round-000001")
    checkpoint, messages = store.latest()
    assert checkpoint is not None
    assert checkpoint.round == 0
    assert len(messages) == 1
    assert "torn" in messages[0]
    assert "round-000001" in messages[0]


def test_another_run_is_refused_with_every_difference(store: CheckpointStore, storage: Storage) -> None:
    other = CheckpointStore(storage, {"seed": 1, "agents.iterations": 200})
    other.claim()
    save_round(other, storage, 0)  # is no reason to pass over the newer one
    store.claim()
    save_round(store, storage, 1)
    with pytest.raises(CheckpointError) as error:
        other.latest()
    assert "seed: 0 there, 1 now" in str(error.value)
    assert "agents.iterations: 100 there, 200 now" in str(error.value)


def test_a_checkpoint_of_the_first_format_is_refused_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "round-000004"
    folder.mkdir(parents=True)
    manifest = {
        "format": 1,
        "round": 4,
        "identity": IDENTITY,
        "files": {"seed-0.safetensors": "0" * 64},
        "progress": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"round-000004.*older version of gradinversion \(format 1"):
        CheckpointStore(Storage(tmp_path), IDENTITY).latest()


def test_a_storage_that_fails_is_no_reason_to_begin_anew(
    store: CheckpointStore, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_round(store, storage, 0)

    def fail(name: str, largest: int) -> bytes:
        raise PassingError(f"{name} cannot be read: no connection.")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read", fail)
        with pytest.raises(StorageError, match="no connection"):
            store.latest()
    assert store.latest()[0] is not None


def test_a_round_that_is_being_written_is_left_alone(store: CheckpointStore, storage: Storage) -> None:
    write_states(storage, 5)
    for index in (2, 3, 4):
        save_round(store, storage, index)
    assert rounds(storage) == ["round-000003", "round-000004", "round-000005"]
    save_round(store, storage, 5)
    assert rounds(storage) == ["round-000004", "round-000005"]


def test_two_whole_rounds_are_kept_not_two_folders(store: CheckpointStore, storage: Storage) -> None:
    save_round(store, storage, 0)
    write_states(storage, 1)  # given up
    write_states(storage, 2)
    save_round(store, storage, 3)
    assert rounds(storage) == ["round-000000", "round-000003"]


def test_what_cannot_be_removed_does_not_undo_the_round(
    store: CheckpointStore, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(2):
        save_round(store, storage, index)

    def fail(name: str) -> None:
        raise PassingError(f"{name} cannot be removed: busy.")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", fail)
        save_round(store, storage, 2)
    assert rounds(storage) == ["round-000000", "round-000001", "round-000002"]
    save_round(store, storage, 3)
    assert rounds(storage) == ["round-000002", "round-000003"]


def test_a_late_writer_does_not_touch_its_successors_file(store: CheckpointStore, storage: Storage) -> None:
    save_round(store, storage, 0, writer="new")
    write_tensors(storage, state_name(0, 3, "old"), {"images": torch.zeros(1)})
    checkpoint, messages = store.latest()
    assert checkpoint is not None
    assert messages == ()
    assert checkpoint.states[3].name == "checkpoints/round-000000/seed-3.new.safetensors"
    assert read_tensors(storage, checkpoint.states[3])["images"].tolist() == [0, 0]


@pytest.mark.parametrize("writer", ["", "a/b", "..", "a b", "x" * 81])
def test_a_writer_is_a_plain_word(writer: str) -> None:
    with pytest.raises(ValueError, match="letters"):
        state_name(0, 0, writer)


def test_a_claim_counts_the_owners_and_fences_the_one_before(storage: Storage) -> None:
    old, new = (CheckpointStore(storage, IDENTITY) for _ in range(2))
    assert old.claim() == 1
    save_round(old, storage, 0)
    assert new.claim() == 2
    with pytest.raises(FencedError, match=r"epoch 2, this one has 1"):
        save_round(old, storage, 1)
    checkpoint, _ = new.latest()
    assert checkpoint is not None
    assert checkpoint.round == 0
    save_round(new, storage, 1)
    assert new.claim() == 3
    save_round(new, storage, 2)


def test_owners_of_one_epoch_are_told_apart(storage: Storage) -> None:
    # Two claims at the same moment: the later write wins.
    one, two = (CheckpointStore(storage, IDENTITY) for _ in range(2))
    one.claim()
    storage.remove("checkpoints/owner.json")
    assert two.claim() == 1
    with pytest.raises(FencedError):
        save_round(one, storage, 0)
    save_round(two, storage, 0)


def test_an_emptied_folder_belongs_to_nobody_else(store: CheckpointStore, storage: Storage) -> None:
    storage.remove("checkpoints")
    save_round(store, storage, 0)
    assert CheckpointStore(storage, IDENTITY).claim() == 2


@pytest.mark.parametrize("content", [b"", b"[]", b'{"epoch": "1", "token": "x"}', b'{"epoch": 1}'])
def test_an_owner_that_cannot_be_read_is_named(content: bytes, store: CheckpointStore, storage: Storage) -> None:
    storage.write("checkpoints/owner.json", content)
    with pytest.raises(CheckpointError, match=r"owner\.json"):
        CheckpointStore(storage, IDENTITY).claim()


def test_a_new_run_clears_the_rounds_and_stays_a_later_owner(store: CheckpointStore, storage: Storage) -> None:
    for index in (7, 8):
        save_round(store, storage, index)
    new = CheckpointStore(storage, IDENTITY)
    new.clear()
    assert rounds(storage) == []
    assert new.claim() == 2
    save_round(new, storage, 0)
    checkpoint, _ = new.latest()
    assert checkpoint is not None
    assert checkpoint.round == 0


def test_tensors_come_back_in_every_bit_and_may_be_changed(storage: Storage) -> None:
    base = torch.randn(4, 6)
    tensors = {
        "view": base[:, 1:3],
        "transposed": base.T,
        "same": base,
        "again": base,
        "numbers": torch.tensor([[True], [False]]),
        "large": torch.tensor(2**62),
        "half": torch.randn(3).to(torch.bfloat16),
        "nan": torch.tensor([math.nan, -0.0], dtype=torch.float64),
        "none": torch.zeros(0, 3),
    }
    file = write_tensors(storage, "checkpoints/x.safetensors", tensors)
    assert (file.size, file.sha256) == (storage.size(file.name), storage.digest(file.name))
    back = read_tensors(storage, file)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (back[name], tensor)]
        assert torch.equal(*bits)
    back["same"][0] = 1
    assert not torch.equal(back["again"], back["same"])


def test_a_state_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    write_tensors(Storage(tmp_path), "state.safetensors", {"x": torch.zeros(1)})
    assert (tmp_path / "state.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path)
    write_tensors(storage, "state.safetensors", {"x": torch.zeros(1)})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_tensors(storage, "state.safetensors", {"x": torch.ones(1)})
    assert float(read_tensors(storage, "state.safetensors")["x"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_disk_that_fills_up_on_the_way_is_the_same_sentence(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_tensors(storage, "state.safetensors", {"x": torch.zeros(1)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(PassingError, match=r"state\.safetensors cannot be written: File too large\.$"):
            write_tensors(storage, "state.safetensors", {"x": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert float(read_tensors(storage, "state.safetensors")["x"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_file_that_is_not_safetensors_is_refused(storage: Storage) -> None:
    storage.write("state.safetensors", b"not a tensor file")
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        read_tensors(storage, "state.safetensors")


def test_a_header_that_declares_more_than_the_file_holds_is_refused(storage: Storage) -> None:
    whole = save({"x": torch.zeros(4)})
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    header["x"] = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    hostile = json.dumps(header).encode()
    for content in (struct.pack("<Q", len(hostile)) + hostile + bytes(16), struct.pack("<Q", 2**60) + whole[8:]):
        storage.write("state.safetensors", content)
        with pytest.raises(CheckpointError, match=r"state\.safetensors cannot be read as a checkpoint"):
            read_tensors(storage, "state.safetensors")


def test_a_file_beyond_the_limit_is_not_read(storage: Storage) -> None:
    file = write_tensors(storage, "state.safetensors", {"x": torch.zeros(100)})
    with pytest.raises(StorageError, match=rf"state\.safetensors has {file.size} bytes; at most 400 are read"):
        read_tensors(storage, file, largest=400)


def test_a_file_that_is_not_the_one_that_was_written_is_refused(storage: Storage) -> None:
    file = write_tensors(storage, "state.safetensors", {"x": torch.zeros(100)})
    for wrong in (dataclasses.replace(file, sha256="0" * 64), dataclasses.replace(file, size=file.size + 1)):
        with pytest.raises(CheckpointError, match=r"state\.safetensors"):
            read_tensors(storage, wrong)
    storage.remove("state.safetensors")
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        read_tensors(storage, file)
    with pytest.raises(AbsentError):
        storage.size("state.safetensors")

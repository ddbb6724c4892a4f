"""Manifests of long runs are read; one that would take too much memory is no torn one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gradinversion.coordinator.checkpoints import CheckpointStore
from gradinversion.coordinator.manifest import read_manifest
from gradinversion.storage.folders import Storage
from gradinversion.storage.json_file import read_json
from gradinversion.storage.safetensors_reader import FormatError
from gradinversion.storage.tensor_file import CheckpointError, TornError

MIB = 2**20
TERMS = ("gradient", "total_variation", "total", "steps_per_second")
ROW = {"round": 1999, "seed": 31, "incarnation": 0, "step": 20_000.0} | dict.fromkeys(TERMS, 0.12345678901234567)


class Memory(Storage):
    """One file."""

    def __init__(self, content: bytes) -> None:
        super().__init__("/nowhere")
        self.content = content

    def read(self, name: str, largest: int) -> bytes:
        assert len(self.content) <= largest
        return self.content


def test_a_manifest_of_320_000_rows_is_read() -> None:
    rows = 320_000
    content = b'{"progress": {"history": [' + b", ".join([json.dumps(ROW).encode()] * rows) + b"]}}"
    with pytest.raises(FormatError, match="in memory"):
        read_json(content)  # more than is allowed a stranger's other files
    history = read_manifest(Memory(content), "manifest.json")["progress"]["history"]
    assert (len(history), history[-1]) == (rows, ROW)


def test_one_that_would_take_too_much_is_not_torn() -> None:
    content = b'{"progress": [' + b"[]," * (12 * MIB) + b"0]}"
    with pytest.raises(CheckpointError, match=r"manifest\.json is not read: its [\d,]+ bytes would take") as found:
        read_manifest(Memory(content), "manifest.json")
    assert not isinstance(found.value, TornError)


def test_a_run_does_not_begin_anew_because_its_manifest_would_take_too_much(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    store = CheckpointStore(storage, {})
    store.claim()
    store.commit(0, {}, {}, {})
    storage.write("checkpoints/round-000001/manifest.json", b'{"progress": [' + b"[]," * (12 * MIB) + b"0]}")
    with pytest.raises(CheckpointError, match=r"round-000001.manifest\.json is not read"):
        store.latest()

"""A result comes back from its storage equal in every bit, or is refused by name."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import Candidate, Outcome
from gradinversion.capture import (
    BatchNormMode,
    ClientFacts,
    Normalisation,
    Penalty,
    Provenance,
    RecoveredLabels,
    assumed,
    read,
    told,
)
from gradinversion.capture.stated import StatedFact
from gradinversion.coordinator import Reconstruction, Source
from gradinversion.coordinator.result_file import read_result, remove_result, write_result
from gradinversion.peeling import KnownFeatures
from gradinversion.peeling.record import (
    Contrast,
    DecoderPhotos,
    End,
    FoundImages,
    ImagesBy,
    LoosePlaces,
    NetworkNode,
    PeelingRecord,
    RecoveredPlace,
)
from gradinversion.peeling.repeats import Repeats
from gradinversion.storage.folders import Storage, StorageError
from gradinversion.storage.json_file import OWN_ROOM, Room, read_json
from gradinversion.storage.safetensors_reader import FormatError
from gradinversion.storage.tensor_file import CheckpointError
from gradinversion.target.belief import Belief

_CONFIG = {
    "seed": 0,
    "learning_rate": 0.1,
    "box": True,
    "labels": None,
    "limit": math.inf,
    "sizes": [1, 2],
    "pair": (3, (4.5, "x")),
    "nested": {"a": {"$tuple": "no tuple", "$": 1, "$$": 2}},
}


FACTS = ClientFacts(
    told(2),
    told(Normalisation((0.1, 0.2, 0.3), (1.0, 1.0, 0.3))),
    assumed(BatchNormMode.EVAL),
    label_smoothing=read(0.1, "the final layer's gradient"),
    penalty=told(Penalty(5e-4, spared=("bias",))),
)


def candidate(seed: int) -> Candidate:
    return Candidate(
        images=torch.randn(2, 3, 4, 4),
        seed=seed,
        incarnation=seed,
        step=100 + seed,
        losses={"gradient": 1 / 3, "total": math.nan},
        outcome=Outcome.NOT_FINITE if seed else Outcome.FINISHED,
        labels=torch.rand(2, 10),
    )


RECORD = PeelingRecord(
    footholds=("the taps of layer4.1.conv2",),
    places=(
        RecoveredPlace("relu", "the input of conv", "conv", (4, 2, 2), "taps", (1e-7, 2e-7), 8, 64, {"a": 0.5}, 1.5),
    ),
    ends=(End("stem", "the stem", "taps", "few equations", "it has", 64, 27, math.inf, 0, 16),),
    nodes=(NetworkNode("relu", "rectifier", ("images",), (4, 2, 2), 0.5, 1.0, 2e-7),),
    images="x",
    image_count=2,
    tolerance=0.03,
    reason="Nothing more follows.",
    found=FoundImages(ImagesBy.DESCENT, (1e-5, math.inf), True),
    decoded=True,
    photos=DecoderPhotos("photos", ("camera", "brick"), ("coffee",)),
    local_steps=2,
    contrast=Contrast.GRID,
    by_taps=True,
    loose=LoosePlaces("relu6", "the input of project", "project", (240, 2, 2), 32, (1e-5, 3e-5)),
    repeats=Repeats(4, (2, 1), ((3, 5), (7,)), True, 1.5, False),
)


@pytest.fixture
def result() -> Reconstruction:
    images = torch.rand(2, 3, 4, 4)
    images[0, 0, 0, 0] = math.nan
    return Reconstruction(
        images=images,
        labels=RecoveredLabels(torch.tensor([3, 7]), torch.tensor([0.5, 1.0]), "counts", "something holds", ("doubt",)),
        consensus=images,
        agreement=torch.rand(2, dtype=torch.float64)[::1],
        candidates=(candidate(0), candidate(1)),
        sources=(Source(0), Source()),
        gradient_loss=1e-17 + 0.1,
        history=({"round": 0, "seed": 1, "total": math.inf, "steps_per_second": 1e300},),
        registration=({"round": 1, "rejected": math.nan},),
        rounds=4,
        iterations=200,
        seconds=12.345678901234567,
        restarts=3,
        outcome=Outcome.INTERRUPTED,
        messages=("a", "b"),
        config=_CONFIG,
        model_id="resnet18",
        batch_norm="eval",
        defence="none",
        normalisation=Normalisation((0.1, 0.2, 0.3), (1.0, 1.0, 0.3)),
        belief=Belief(FACTS, sign_turned=True),
        training="The client made four steps.",
        known=KnownFeatures("layer4.1.bn1", True, True, torch.rand(2, 3, 1, 1), 1e-6, "the taps of layer4.1.conv2"),
        facts=(
            StatedFact("momentum", "Momentum", "0.9", Provenance.READ, "x", True, "told.momentum=0.9", "It is not."),
        ),
        limits=("Nothing can be descended.",),
        peeling=RECORD,
    )


def same(left: Any, right: Any) -> bool:
    """Equal in type and in every bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        bits = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (left, right)]
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*bits)
    if dataclasses.is_dataclass(left):
        return all(same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return repr(left) == repr(right)
    return left == right


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_everything_comes_back(kind: str, result: Reconstruction, tmp_path: Path) -> None:
    storage = Storage(tmp_path if kind == "disk" else "memory://result")
    assert read_result(storage) is None
    write_result(storage, result)
    back = read_result(storage)
    assert same(back, result)
    remove_result(storage)
    assert read_result(storage) is None
    assert storage.names("checkpoints") == []
    remove_result(storage)


def test_the_result_of_a_long_run_comes_back(
    result: Reconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose history takes more than a stranger's file of 100 MiB may, and no more than our own of as many."""
    terms = dict.fromkeys(("gradient", "total_variation", "total", "steps_per_second"), 0.12345678901234567)
    row = {"round": 1999, "seed": 31, "incarnation": 0, "step": 20_000.0} | terms
    long = dataclasses.replace(result, history=(row,) * 1_000)
    storage = Storage(tmp_path)
    write_result(storage, long)
    content = (tmp_path / "checkpoints/result.json").read_bytes()
    share = len(content) / (100 * 2**20)
    monkeypatch.setattr("gradinversion.storage.json_file._SMALL_BYTES", 0)
    own = dataclasses.replace(OWN_ROOM, more=int(share * OWN_ROOM.more))
    monkeypatch.setattr("gradinversion.coordinator.result_file.OWN_ROOM", own)
    with pytest.raises(FormatError, match="in memory"):
        read_json(content, Room(2.0, int(share * 100 * 2**20)))
    assert same(read_result(storage), long)


def test_the_comparison_notices_a_difference(result: Reconstruction) -> None:
    images = result.images.clone()
    images[1, 1, 1, 1] += 1e-7
    assert not same(result, dataclasses.replace(result, images=images))
    assert not same(result, dataclasses.replace(result, config=_CONFIG | {"pair": [3, (4.5, "x")]}))
    assert not same(result, dataclasses.replace(result, gradient_loss=0.1 + 1e-16))


def test_no_field_was_left_at_its_default(result: Reconstruction) -> None:
    parts = (RECORD, RECORD.found, RECORD.repeats, *RECORD.places, *RECORD.ends, *RECORD.nodes)
    values: tuple[Any, ...] = (result, result.labels, *result.candidates, *result.facts, *parts)
    for value in values:
        for field in dataclasses.fields(value):
            assert field.default is dataclasses.MISSING or getattr(value, field.name) != field.default, field.name


def test_the_json_is_that_of_the_standard(result: Reconstruction, tmp_path: Path) -> None:
    write_result(Storage(tmp_path), result)

    def refuse(constant: str) -> float:
        raise AssertionError(f"bare {constant}")

    json.loads((tmp_path / "checkpoints" / "result.json").read_text(), parse_constant=refuse)


def test_a_new_result_replaces_the_old_one(result: Reconstruction, tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_result(storage, result)
    newer = dataclasses.replace(result, images=torch.zeros(2, 3, 4, 4), candidates=(candidate(5),))
    write_result(storage, newer)
    assert same(read_result(storage), newer)


def test_a_write_that_ends_between_the_files_leaves_the_result_that_was_there(
    result: Reconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path)
    write_result(storage, result)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write", die)
    with pytest.raises(KeyboardInterrupt):
        write_result(storage, dataclasses.replace(result, images=torch.zeros(2, 3, 4, 4)))
    assert same(read_result(storage), result)


def test_a_disk_that_is_full_at_any_write_leaves_the_result_that_was_there(
    result: Reconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, flush, flushed = Storage(tmp_path), os.fsync, 0
    newer = dataclasses.replace(result, images=torch.zeros(2, 3, 4, 4))
    write_result(storage, result)
    # A folder is flushed after the file in it has its place.
    for full in itertools.count():

        def fsync(descriptor: int, full: int = full) -> None:
            nonlocal flushed
            flushed += 1
            if flushed > full and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(descriptor)

        flushed = 0
        monkeypatch.setattr(os, "fsync", fsync)
        try:
            write_result(storage, newer)
            break
        except StorageError:
            pass
        assert same(read_result(storage), result)
        assert storage.names("checkpoints") == ["result.json", "result.safetensors"]
    assert full > 1
    assert same(read_result(storage), newer)
    assert storage.names("checkpoints") == ["result.2.safetensors", "result.json"]


def test_what_a_file_cannot_hold_is_a_mistake_of_the_program(result: Reconstruction, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"result\.config\.thing is a object"):
        write_result(Storage(tmp_path), dataclasses.replace(result, config={"thing": object()}))
    assert read_result(Storage(tmp_path)) is None


def _change(path: tuple[str, ...], value: Any) -> Callable[[Path], None]:
    """Sets one value in the JSON, or takes it away (None)."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "result.json").read_text())
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        if value is None:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        (folder / "result.json").write_text(json.dumps(content))

    return change


def _cut(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])

    return cut


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_cut("result.json"), r"result\.json"),
        (_cut("result.safetensors"), r"result\.safetensors"),
        (lambda folder: (folder / "result.safetensors").unlink(), r"result\.safetensors"),
        (lambda folder: (folder / "result.safetensors").write_bytes(b"x" * 100_000), r"result\.safetensors"),
        (lambda folder: (folder / "result.json").write_text("[1, 2]"), r"result\.json"),
        (lambda folder: (folder / "result.json").write_text("[" * 100_000), r"result\.json"),
        (_change(("format",), 1), r"result\.json has format 1"),
        (_change(("tensors",), "none"), r"result\.json"),
        (_change(("tensors", "name"), "../else.safetensors"), r"result\.json"),
        (_change(("tensors", "sha256"), "0" * 64), r"result\.safetensors differs from its checksum"),
        (_change(("result", "images"), {"$tensor": "other"}), r"result\.json"),
        (_change(("result", "images"), {"$tensor": "result.agreement"}), r"result\.json"),
        (_change(("result", "images"), 5), r"result\.json"),
        (_change(("result", "outcome"), "won"), r"result\.json"),
        (_change(("result", "seconds"), None), r"result\.json"),
        (_change(("result", "labels", "luck"), 1), r"result\.json"),
        (_change(("result", "normalisation", "std"), {"$tuple": [0.0, 1.0, 1.0]}), r"result\.json"),
    ],
)
def test_a_torn_or_foreign_file_is_refused_by_name(
    damage: Callable[[Path], None], named: str, result: Reconstruction, tmp_path: Path
) -> None:
    storage = Storage(tmp_path)
    write_result(storage, result)
    assert read_result(storage) is not None
    damage(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match=named):
        read_result(storage)

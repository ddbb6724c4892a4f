"""CapturedUpdate: its checks, its file, and the hash that ties it to a model."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from gradinversion.capture import (
    IMAGENET,
    BatchNormMode,
    CapturedUpdate,
    ClientFacts,
    Defence,
    Penalty,
    Reduction,
    Sampling,
    UpdateError,
    UpdateKind,
    assumed,
    load_model,
    read,
    told,
    weight_hash,
)
from gradinversion.capture.update_file import read_update
from gradinversion.storage.safetensors_reader import LARGEST_HEADER_BYTES
from torch import nn


def small_facts() -> ClientFacts:
    return ClientFacts(
        image_count=told(2),
        normalisation=assumed(IMAGENET, "nobody said"),
        batch_norm=read(BatchNormMode.TRAIN_SHARED, "running statistics that moved"),
        reduction=told(Reduction.SUM),
        loss_scale=read(None, "the final layer"),
        penalty=told(Penalty(5e-4, 1e-5)),
        defences=told((Defence("dp_sgd", 1.1, (0.5, 1.0)), Defence("noise", 0.1))),
        sampling=told(Sampling(True, 8)),
        privacy="epsilon 3",
    )


def small_update(**changes: Any) -> CapturedUpdate:
    """Changes are fields of the update, or facts by their name."""
    generator = torch.Generator().manual_seed(0)
    facts = small_facts().stating(**{name: changes.pop(name) for name, _ in small_facts().items() if name in changes})
    update = CapturedUpdate(
        gradients={
            "0.weight": torch.randn(3, 2, generator=generator),
            "half": torch.randn(4, generator=generator).bfloat16(),
            "scalar": torch.tensor(1.5, dtype=torch.float64),
        },
        image_shape=(3, 8, 9),
        model_id="convnet",
        weight_hash="ab" * 32,
        facts=small_facts(),
        buffers={"1.running_mean": torch.zeros(2), "1.num_batches_tracked": torch.tensor(3)},
    )
    return replace(update, **{"facts": facts, **changes})


def write_raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "update.safetensors"
    small_update().save(path)
    return path


def with_facts(path: Path, changes: dict[str, Any]) -> Path:
    """The file with other metadata; ``facts.NAME`` is the value of a fact, or the whole of it where it is an object
    with a provenance."""
    header, data = header_of(path)
    metadata = json.loads(header["__metadata__"]["gradinversion"])
    for name, value in changes.items():
        if name.startswith("facts."):
            whole = isinstance(value, dict) and "provenance" in value
            fact = value if whole else {**metadata["facts"].get(name[6:], {}), "value": value}
            metadata["facts"][name[6:]] = fact
        else:
            metadata[name] = value
    header["__metadata__"]["gradinversion"] = json.dumps(metadata)
    return write_raw(path, header, data)


def test_file_gives_back_the_same_update(saved: Path) -> None:
    before, after = small_update(), CapturedUpdate.load(saved)
    for name in ("image_shape", "model_id", "weight_hash", "facts", "kind"):
        assert getattr(after, name) == getattr(before, name)
    assert after.kind is UpdateKind.GRADIENT
    assert before.buffers is not None
    assert after.buffers is not None
    for ours, theirs in ((before.gradients, after.gradients), (before.buffers, after.buffers)):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name])


def test_file_is_plain_safetensors_with_the_documented_names(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved)
    assert set(tensors) == {
        "gradient/0.weight",
        "gradient/half",
        "gradient/scalar",
        "buffer/1.running_mean",
        "buffer/1.num_batches_tracked",
    }
    assert torch.equal(tensors["gradient/0.weight"], small_update().gradients["0.weight"])


def test_shared_memory_and_views_are_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    update = small_update(gradients={"a": base.t(), "b": base, "c": torch.ones(1).expand(5)})
    update.save(tmp_path / "u.safetensors")
    loaded = CapturedUpdate.load(tmp_path / "u.safetensors")
    assert torch.equal(loaded.gradients["a"], base.t())
    assert torch.equal(loaded.gradients["c"], torch.ones(5))


def test_failed_save_leaves_the_old_file_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UpdateError, match="No space left"):
        small_update(image_count=told(7)).save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_save_into_a_missing_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match=r"cannot be written to .*absent"):
        small_update().save(tmp_path / "absent" / "u.safetensors")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "too few"),
        (b"1234567", "too few"),
        (pickle.dumps({"a": 1, "weights": list(range(100))}), "header"),
        (bytes(random.Random(0).randbytes(4096)), "header"),
        (struct.pack("<Q", 2**63) + b"x" * 50, "header"),
        (struct.pack("<Q", LARGEST_HEADER_BYTES + 1) + b"x" * 50, "header"),
        (struct.pack("<Q", 400) + b"{}", "cut off"),
        (struct.pack("<Q", 6) + b"[1, 2]", "JSON object"),
        (struct.pack("<Q", 4) + b"\xff\xfe\x00\x01", "JSON object"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "JSON object"),
        (struct.pack("<Q", 2) + b"{}", "without the metadata"),
        (struct.pack("<Q", 13) + b'{"a":1,"a":2}', "twice"),
        (struct.pack("<Q", 10_006) + b'{"a":' + b"9" * 10_000 + b"}", "JSON object"),
    ],
)
def test_foreign_bytes_are_refused_in_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(UpdateError, match=sentence) as caught:
        CapturedUpdate.load(path)
    assert "foreign.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_folder_and_oversize_are_refused(saved: Path) -> None:
    with pytest.raises(UpdateError, match="does not exist"):
        CapturedUpdate.load(saved.parent / "absent")
    with pytest.raises(UpdateError, match="is not a file"):
        CapturedUpdate.load(saved.parent)
    with pytest.raises(UpdateError, match="at most 100 are read"):
        read_update(saved, CapturedUpdate, largest_bytes=100)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 3}, "format version is 3"),
        ({"version": True}, "format version is True"),
        ({"facts.image_count": -1}, "image_count is -1"),
        ({"facts.image_count": 0}, "image_count is 0"),
        ({"facts.image_count": 2.0}, "image_count is 2.0"),
        ({"facts.image_count": 10**30}, "image_count is 1000"),
        ({"image_shape": [3, 10**7, 32]}, "image_shape"),
        ({"image_shape": [3, -4, 32]}, "image_shape"),
        ({"image_shape": [3, 32]}, "image_shape"),
        ({"image_shape": "big"}, "image_shape"),
        ({"facts.normalisation": {"mean": [0.5], "std": [1, 1, 1]}}, "normalisation"),
        ({"facts.normalisation": {"mean": ["a", "b", "c"], "std": [1, 1, 1]}}, "mean"),
        ({"facts.normalisation": {"mean": [0, 0, 0], "std": [0.2, 0.0, 0.2]}}, "deviation"),
        ({"facts.normalisation": {"mean": [0, 0, 0], "std": [float("nan"), 0.2, 0.2]}}, "std"),
        ({"facts.normalisation": {"mean": [10**400, 0, 0], "std": [1, 1, 1]}}, "mean"),
        ({"facts.normalisation": [0.5]}, "must have the entries mean, std"),
        ({"model_id": 7}, "model_id is 7"),
        ({"model_id": "x" * 10_000}, "model_id"),
        ({"weight_hash": None}, "weight_hash is None"),
        ({"facts.batch_norm": "frozen"}, "batch_norm is 'frozen'"),
        ({"facts.batch_norm": "eval"}, "buffers although"),
        ({"facts.batch_norm": ["eval"]}, "batch_norm is"),
        ({"facts.reduction": "product"}, "reduction is 'product'"),
        ({"facts.loss_scale": -1}, "scale of the loss is -1"),
        ({"facts.label_smoothing": 1}, "label smoothing is 1"),
        ({"facts.penalty": {"l1": 0, "l2": -1}}, "penalty"),
        ({"facts.clients": 0}, "number of clients is 0"),
        ({"facts.defences": "none"}, "must be a list"),
        ({"facts.defences": [{"name": "fog", "strength": 1, "clip": []}]}, "defence is 'fog'"),
        ({"facts.defences": [{"name": "clip", "strength": "1", "clip": []}]}, "strength is '1'"),
        ({"facts.dropout": "no"}, "dropout is 'no'"),
        ({"facts.sampling": {"poisson": 1, "expected": None}}, "poisson is 1"),
        ({"facts.loss": {"value": "x", "provenance": "sworn", "source": ""}}, "'sworn'; it must be one of told"),
        ({"facts.loss": {"value": "x", "provenance": "told", "source": "y" * 501}}, "source is"),
        ({"facts.loss": {"value": "x", "provenance": "told"}}, "must have the entries value, provenance and source"),
        ({"facts.aura": 1}, "name 'aura', which this version does not know"),
        ({"facts.momentum": {"value": 0.9, "provenance": "told", "source": ""}}, "although the client did not train"),
        ({"facts": [1]}, "facts are"),
        ({"kind": "secret"}, "kind is 'secret'"),
        ({"buffers": "yes"}, "buffers is 'yes'"),
    ],
)
def test_wrong_facts_are_named(saved: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UpdateError, match=sentence):
        CapturedUpdate.load(with_facts(saved, changes))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"dtype": "F32", "shape": [3, 3], "data_offsets": [0, 24]}, "does not fit its 24 bytes"),
        ({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 24]}, "shape"),
        ({"dtype": "F32", "shape": [6], "data_offsets": [0, 2**40]}, "offsets|does not fit"),
        ({"dtype": "F32", "shape": [6], "data_offsets": [24, 0]}, "rising"),
        ({"dtype": "F32", "shape": [-6], "data_offsets": [0, 24]}, "shape"),
        ({"dtype": "F32", "shape": [True, 6], "data_offsets": [0, 24]}, "shape"),
        ({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "shape"),
        ({"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}, "shape"),
        ({"dtype": "I64", "shape": [3], "data_offsets": [0, 24]}, "type 'I64'"),
        ({"dtype": "BOOL", "shape": [24], "data_offsets": [0, 24]}, "type 'BOOL'"),
        ({"dtype": ["F32"], "shape": [6], "data_offsets": [0, 24]}, "type"),
        ({"dtype": "F32", "shape": [6]}, "malformed"),
        (None, "malformed"),
        ({"dtype": "F32", "shape": [7], "data_offsets": [0, 28]}, "overlap|gaps"),
    ],
)
def test_wrong_tensor_entries_are_refused_before_they_are_read(saved: Path, entry: Any, sentence: str) -> None:
    header, data = header_of(saved)
    name = next(key for key, value in header.items() if value.get("data_offsets", [9])[0] == 0)
    header[name] = entry
    header["gradient/x"] = header.pop(name)
    with pytest.raises(UpdateError, match=sentence):
        CapturedUpdate.load(write_raw(saved, header, data))


def test_a_huge_declared_tensor_costs_no_memory(tmp_path: Path) -> None:
    metadata = {"gradinversion": json.dumps({"version": 1})}
    entry = {"dtype": "F32", "shape": [2**31], "data_offsets": [0, 2**33]}
    path = write_raw(tmp_path / "u", {"__metadata__": metadata, "gradient/a": entry})
    with pytest.raises(UpdateError, match="the file holds 0"):
        CapturedUpdate.load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(saved: Path, value: float) -> None:
    tensors = safetensors.torch.load_file(saved)
    tensors["gradient/0.weight"][1, 1] = value
    header, _ = header_of(saved)
    safetensors.torch.save_file(tensors, saved, metadata=header["__metadata__"])
    with pytest.raises(UpdateError, match=r"'0\.weight' holds values that are not finite"):
        CapturedUpdate.load(saved)


def test_damage_anywhere_never_raises_anything_but_update_error(saved: Path) -> None:
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    dice = random.Random(1)
    refused: list[str] = []
    for trial in range(900):
        damaged = bytearray(content)
        if trial % 3 == 0:
            del damaged[dice.randrange(len(content)) :]
        else:
            for _ in range(dice.randint(1, 4)):
                damaged[dice.randrange(8 + length)] ^= 1 << dice.randrange(8)
        saved.write_bytes(damaged)
        try:
            CapturedUpdate.load(saved)
        except UpdateError as error:
            refused.append(str(error))
    # A flipped bit in a name or a free text is no damage that can be seen; every truncation is.
    assert len(refused) >= 600
    assert all(str(saved) in sentence for sentence in refused)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_count": told(0)}, "image_count is 0"),
        ({"gradients": {}}, "no gradient at all"),
        ({"gradients": {"a": torch.ones(2, dtype=torch.int32)}}, "must be floating point"),
        ({"gradients": {"a": torch.tensor([float("nan")])}}, "'a' holds values that are not finite"),
        ({"image_shape": (1, 8, 8)}, "for 3 channels and the images have 1"),
        ({"buffers": None}, "holds no batch-norm buffers"),
        ({"batch_norm": told(BatchNormMode.EVAL)}, "although its mode"),
    ],
)
def test_impossible_updates_cannot_be_made(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UpdateError, match=sentence):
        small_update(**changes)


def test_weight_hash_sees_every_change_but_the_step_counter() -> None:
    model = load_model("convnet")
    first = weight_hash(model)
    assert first == weight_hash(load_model("convnet"))
    assert len(first) == 64
    model.get_buffer("1.num_batches_tracked").add_(5)
    assert weight_hash(model) == first
    with torch.no_grad():
        model.get_buffer("1.running_mean")[0] += 1e-7
    assert weight_hash(model) != first
    assert weight_hash(load_model("convnet", seed=1)) != first
    assert weight_hash(model.double()) != weight_hash(model.float())


def test_mismatches_are_listed_all_at_once() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    fitting = small_update(
        gradients={name: torch.zeros_like(p) for name, p in model.named_parameters()},
        buffers={name: b.clone() for name, b in model.named_buffers()},
        weight_hash=weight_hash(model),
    )
    assert fitting.mismatches(model) == []
    fitting.require_match(model)
    wrong = dict(fitting.gradients)
    wrong["0.weight"] = torch.zeros(3, 5)
    wrong["extra"] = wrong.pop("0.bias")
    bad = replace(fitting, gradients=wrong, buffers={"1.running_mean": torch.zeros(4)}, weight_hash="0" * 64)
    found = bad.mismatches(model)
    for part in ("'0.bias' is missing", "'extra' is not in", "(3, 5)", "(4,)", "'1.running_var' is missing", "hash"):
        assert any(part in line for line in found), part
    with pytest.raises(UpdateError) as caught:
        bad.require_match(model)
    assert all(line in str(caught.value) for line in found)


def test_frozen_parameters_are_not_expected_in_the_update() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    update = small_update(
        gradients={"weight": torch.zeros(2, 2)},
        buffers=None,
        batch_norm=told(BatchNormMode.EVAL),
        weight_hash=weight_hash(model),
    )
    assert update.mismatches(model) == []


def test_an_update_shows_itself_in_three_lines() -> None:
    lines = repr(small_update()).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("CapturedUpdate(gradient of ")
    assert "images of" in lines[1]
    assert "assumed" in lines[2]
    assert max(map(len, lines)) < 200

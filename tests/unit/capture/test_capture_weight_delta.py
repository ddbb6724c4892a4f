"""Weight deltas: the facts about the client's local steps, their file, and the capture of before and after."""

from __future__ import annotations

import copy
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.capture import (
    BatchNormMode,
    CapturedUpdate,
    LocalTraining,
    Reduction,
    UpdateError,
    UpdateKind,
    as_gradient,
    capture_gradient,
    capture_weight_delta,
    told,
)
from torch import Tensor, nn

TRAINING = LocalTraining(0.1, epochs=2, batch_size=2, momentum=0.9, weight_decay=1e-4, shuffled=True)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def trained(model: nn.Module, moved: bool = False) -> nn.Module:
    after = copy.deepcopy(model)
    statistics = (after.get_buffer("1.running_mean"), after.get_buffer("1.running_var")) if moved else ()
    with torch.no_grad():
        for tensor in (*after.parameters(), *statistics):
            tensor.add_(0.25)
    return after


def delta(moved: bool = False, **changes: Any) -> CapturedUpdate:
    model = network()
    facts: dict[str, Any] = {"image_count": 3, "image_shape": (3, 8, 8), "local": TRAINING} | changes
    return capture_weight_delta(model, trained(model, moved), **facts)


def rewrite(path: Path, **changes: Any) -> None:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = json.loads(header["__metadata__"]["gradinversion"])
    for name, value in changes.items():
        metadata["facts"][name]["value"] = value
    header["__metadata__"]["gradinversion"] = json.dumps(metadata)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_delta_is_after_minus_before_and_fits_the_model() -> None:
    model = network()
    update = delta(model_id="net")
    assert update.kind is UpdateKind.WEIGHT_DELTA
    assert update.local == TRAINING
    assert update.buffers is None
    assert update.gradients.keys() == dict(model.named_parameters()).keys()
    for tensor in update.gradients.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 0.25))
    update.require_match(model)
    assert update.model_id == "net"


def test_a_state_dict_and_a_module_give_the_same() -> None:
    model = network()
    facts: dict[str, Any] = {"image_count": 3, "image_shape": (3, 8, 8), "local": TRAINING}
    one = capture_weight_delta(model, trained(model), **facts)
    other = capture_weight_delta(model, trained(model).state_dict(), **facts)
    assert all(torch.equal(one.gradients[name], other.gradients[name]) for name in one.gradients)


def test_running_statistics_are_sent_in_train_shared_mode_alone() -> None:
    model = network()
    shared = delta(moved=True, batch_norm="train_shared")
    assert shared.buffers is not None
    assert torch.equal(shared.buffers["1.running_mean"], model.get_buffer("1.running_mean") + 0.25)
    assert delta(moved=True, batch_norm=BatchNormMode.TRAIN_PRIVATE).buffers is None
    shared.require_match(model)


def test_statistics_that_moved_stand_in_the_place_of_evaluation_mode() -> None:
    for said in (None, "eval"):
        found = delta(moved=True, batch_norm=said)
        assert found.facts.batch_norm.value is BatchNormMode.TRAIN_SHARED
        assert found.facts.batch_norm.provenance == "read"
        assert found.buffers is not None


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16])
def test_evaluation_mode_that_was_told_stands_where_statistics_were_rounded_alone(cast: torch.dtype) -> None:
    model = network()
    with torch.no_grad():
        model.get_buffer("1.running_mean").normal_()
        model.get_buffer("1.running_var").uniform_(0.5, 2)
    state = {name: tensor.to(cast).float() for name, tensor in trained(model).state_dict().items()}
    found = capture_weight_delta(model, state, image_count=3, image_shape=(3, 8, 8), local=TRAINING, batch_norm="eval")
    assert found.facts.batch_norm == told(BatchNormMode.EVAL)
    assert found.buffers is None


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    update = capture_weight_delta(model, trained(model), image_count=1, image_shape=(3, 8, 8), local=LocalTraining(0.1))
    assert "0.weight" not in update.gradients
    update.require_match(model)


@pytest.mark.parametrize("local", [TRAINING, LocalTraining(None), LocalTraining(1, epochs=3)])
def test_file_gives_back_the_local_steps(local: LocalTraining, tmp_path: Path) -> None:
    delta(local=local).save(tmp_path / "u.safetensors")
    after = CapturedUpdate.load(tmp_path / "u.safetensors")
    assert after.local == local
    assert after.kind is UpdateKind.WEIGHT_DELTA


def test_file_of_a_gradient_has_no_entry_for_local_steps(tmp_path: Path) -> None:
    path = tmp_path / "u.safetensors"
    update = delta()
    replace(update, kind=UpdateKind.GRADIENT, facts=replace(update.facts, local=None)).save(path)
    assert b"epochs" not in path.read_bytes()
    assert CapturedUpdate.load(path).local is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", "0.1", "learning_rate is '0.1'"),
        ("learning_rate", 0, "learning rate is 0"),
        ("learning_rate", float("nan"), "learning_rate is nan"),
        ("learning_rate", 10**400, "learning_rate is a huge number"),
        ("epochs", None, "epochs is None"),
        ("epochs", 1.5, "epochs is 1.5"),
        ("epochs", 10**6, "at most 10,000 can be retraced"),
        ("batch_size", 4, "local batch size is 4 and it has 3 images"),
        ("batch_size", True, "batch_size is True"),
        ("momentum", None, "momentum is None"),
        ("weight_decay", -1, "weight decay is -1"),
        ("shuffled", 1, "shuffled is 1"),
    ],
)
def test_a_file_with_bad_local_steps_is_refused_in_a_sentence(
    name: str, value: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "u.safetensors"
    delta().save(path)
    rewrite(path, **{name: value})
    with pytest.raises(UpdateError, match="the update file") as raised:
        CapturedUpdate.load(path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning rate is 0.0"),
        ({"learning_rate": -0.1}, "learning rate is -0.1"),
        ({"learning_rate": float("nan")}, "learning rate is nan"),
        ({"learning_rate": float("inf")}, "learning rate is inf"),
        ({"epochs": 0}, "epochs are 0"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"weight_decay": float("nan")}, "weight decay is nan"),
    ],
)
def test_local_steps_that_train_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UpdateError, match=message):
        LocalTraining(**{"learning_rate": 0.1} | settings)


def test_kind_and_local_steps_must_agree() -> None:
    with pytest.raises(UpdateError, match="only a weight delta has them"):
        replace(delta(), kind=UpdateKind.GRADIENT)
    with pytest.raises(UpdateError, match="does not tell the client's local steps"):
        replace(delta(), facts=replace(delta().facts, local=None))
    with pytest.raises(UpdateError, match="local batch size is 2 and it has 1 images"):
        delta().stating(image_count=told(1))


def test_a_delta_of_zeros_is_refused() -> None:
    model = network()
    with pytest.raises(UpdateError, match="zero everywhere"):
        capture_weight_delta(model, model, image_count=3, image_shape=(3, 8, 8), local=TRAINING)


def test_weights_of_another_model_are_refused() -> None:
    state: dict[str, Tensor] = dict(network().state_dict())
    facts: dict[str, Any] = {"image_count": 3, "image_shape": (3, 8, 8), "local": TRAINING}
    state["4.bias"] = torch.zeros(6)
    with pytest.raises(UpdateError, match=r"'4\.bias' has shape \(6,\) instead of \(5,\)"):
        capture_weight_delta(network(), state, **facts)
    with pytest.raises(UpdateError, match=r"parameter '0\.weight' is missing"):
        capture_weight_delta(network(), {}, **facts)
    state = {name: t + 1 for name, t in network().state_dict().items() if "running_var" not in name}
    with pytest.raises(UpdateError, match=r"batch-norm buffer '1\.running_var' is missing"):
        capture_weight_delta(network(), state, batch_norm="train_shared", **facts)


def test_steps_and_batches() -> None:
    assert LocalTraining(0.1).steps(7) == 1
    assert TRAINING.batches(5) == (range(2), range(2, 4), range(4, 5))
    assert TRAINING.steps(5) == 6


@pytest.mark.parametrize("reduction", [Reduction.MEAN, Reduction.SUM])
def test_a_gradient_that_was_read_off_a_step_tells_what_its_entries_were_divided_by(reduction: Reduction) -> None:
    """So that who reads it knows the rounding of the weights in it."""
    update = delta(local=LocalTraining(0.1, epochs=1)).stating(reduction=told(reduction))
    found = as_gradient(update, network())
    assert found.step_rate is not None
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(-found.step_rate * gradient, update.gradients[name])
    assert update.step_rate is None
    sent = capture_gradient(network(), torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    assert as_gradient(sent, network()).step_rate is None

"""The update between two state dicts."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from gradinversion.capture import (
    IMAGENET,
    BatchNormMode,
    CapturedUpdate,
    LocalTraining,
    ModelError,
    UpdateError,
    UpdateKind,
    capture_gradient,
    load_model,
    weight_hash,
)
from gradinversion.capture.adapters import capture_state_dicts
from gradinversion.target.step_counter import check_step_counter
from torch import Tensor, nn

State = dict[str, Tensor]


def trained(model: nn.Module, train_batch_norm: bool = False) -> tuple[State, State]:
    """The states before and after one step of SGD with learning rate 0.1 on four images."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.train(train_batch_norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(IMAGENET.apply(images)), torch.arange(4)).backward()
    optimizer.step()
    return before, model.state_dict()


def capture(before: State | str, after: State | Path, **options: object) -> CapturedUpdate:
    facts: dict[str, object] = {"image_count": 4, "image_shape": (3, 32, 32), "local": LocalTraining(0.1)} | options
    return capture_state_dicts(load_model("convnet", seed=9), before, after, **facts)  # type: ignore[arg-type]


def test_one_step_is_minus_the_learning_rate_times_the_gradient() -> None:
    model = load_model("convnet")
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gradient = capture_gradient(model, images, torch.arange(4)).gradients
    update = capture(*trained(model))
    assert update.kind is UpdateKind.WEIGHT_DELTA
    assert update.batch_norm is BatchNormMode.EVAL
    for name, value in gradient.items():
        torch.testing.assert_close(update.gradients[name], -0.1 * value, rtol=1e-3, atol=1e-7)
    update.require_match(load_model("convnet"))


def test_files_and_wrapped_names_give_the_same_update(tmp_path: Path) -> None:
    before, after = trained(load_model("convnet"))
    safetensors.torch.save_file(before, tmp_path / "before.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in after.items()}}, tmp_path / "after.pt")
    expected = capture(before, after)
    found = capture(str(tmp_path / "before.safetensors"), tmp_path / "after.pt")
    assert found.weight_hash == expected.weight_hash
    assert all(torch.equal(found.gradients[name], value) for name, value in expected.gradients.items())


def test_batch_norm_is_inferred_from_what_the_client_sent() -> None:
    before, after = trained(load_model("convnet"), train_batch_norm=True)
    shared = capture(before, after)
    assert shared.batch_norm is BatchNormMode.TRAIN_SHARED
    assert shared.buffers is not None
    assert torch.equal(shared.buffers["1.running_mean"], after["1.running_mean"])
    kept = {name: value for name, value in after.items() if "running" not in name}
    assert capture(before, kept).batch_norm is BatchNormMode.TRAIN_PRIVATE
    assert capture(before, after, batch_norm="train_private").buffers is None


def test_statistics_that_moved_are_no_evaluation_mode_whatever_was_told() -> None:
    before, after = trained(load_model("convnet"), train_batch_norm=True)
    found = capture(before, after, batch_norm="eval")
    fact = found.facts.batch_norm
    assert (fact.value, fact.provenance) == (BatchNormMode.TRAIN_SHARED, "read")
    assert fact.source == "running statistics that moved, where 'eval' was told"
    assert found.buffers is not None
    kept = {name: value for name, value in after.items() if "running" not in name}
    assert capture(before, kept, batch_norm="eval").facts.batch_norm.provenance == "told"


def test_statistics_of_another_state_that_no_batch_moved_are_said() -> None:
    model = load_model("convnet")
    before, after = trained(model)
    other = {name: value + 0.5 if name.endswith("running_mean") else value for name, value in after.items()}
    update = capture(before, other, batch_norm="eval")
    model.load_state_dict(before)
    assert "moved by 0" in check_step_counter(update, model).contradictions["epochs"]


def test_statistics_that_a_type_rounded_have_not_moved() -> None:
    model = load_model("convnet")
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    before, after = trained(model)
    assert capture(before, {name: value.bfloat16() for name, value in after.items()}).batch_norm is BatchNormMode.EVAL


def test_the_given_model_is_left_as_it_is() -> None:
    before, after = trained(load_model("convnet"))
    model = load_model("convnet", seed=9)
    digest = weight_hash(model)
    capture_state_dicts(
        model, before, after, image_count=4, image_shape=(3, 32, 32), local=LocalTraining(0.1), model_id="convnet"
    )
    assert weight_hash(model) == digest


def test_states_that_do_not_fit_are_a_sentence() -> None:
    before, after = trained(load_model("convnet"))
    with pytest.raises(UpdateError, match=r"parameter '13\.bias' is missing"):
        capture(before, {name: value for name, value in after.items() if name != "13.bias"})
    with pytest.raises(UpdateError, match=r"'13\.bias' has shape \(3,\) instead of \(10,\)"):
        capture(before, after | {"13.bias": torch.zeros(3)})
    with pytest.raises(ModelError, match=r"the state before training do not fit the model(.|\n)*'13\.bias' is missing"):
        capture({name: value for name, value in before.items() if name != "13.bias"}, after)
    with pytest.raises(ModelError, match=r"'absent\.pt' does not exist"):
        capture(before, Path("absent.pt"))
    with pytest.raises(UpdateError, match="not finite"):
        capture(before, after | {"13.bias": torch.full((10,), float("nan"))})

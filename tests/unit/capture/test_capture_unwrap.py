"""Models inside wrappers, and updates that were made inside one: the plain model's names everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from gradinversion.capture import (
    BatchNormMode,
    CapturedUpdate,
    LocalTraining,
    ModelError,
    capture_gradient,
    capture_weight_delta,
    load_model,
    recover_labels,
    train_locally,
    weight_hash,
)
from gradinversion.capture.adapters import capture_state_dicts
from gradinversion.capture.fitting import fit
from gradinversion.capture.unwrap import inside, unwrap
from gradinversion.peeling import peel
from torch import nn

IMAGES, LABELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 7])
LOCAL = LocalTraining(0.1)


def build() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 5, 4, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*layers).eval()


def private(model: nn.Module) -> nn.Module:
    grad_sample = pytest.importorskip("opacus.grad_sample")
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
        norm.requires_grad_(False)
    wrapped: nn.Module = grad_sample.GradSampleModule(model)
    return wrapped


def compiled(model: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(model))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compile": compiled,
    "compile in DataParallel": lambda model: nn.DataParallel(compiled(model)),
    "DataParallel in compile": lambda model: compiled(nn.DataParallel(model)),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


def same(one: CapturedUpdate, other: CapturedUpdate) -> bool:
    return (
        one.gradients.keys() == other.gradients.keys()
        and all(torch.equal(one.gradients[name], other.gradients[name]) for name in one.gradients)
        and (one.weight_hash, one.model_id) == (other.weight_hash, other.model_id)
    )


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_changes_nothing_of_an_update(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain, wrapped = build(), wrap(build())
    assert same(capture_gradient(wrapped, IMAGES, LABELS), capture_gradient(plain, IMAGES, LABELS))
    trained = [train_locally(model, IMAGES, LABELS, local=LOCAL) for model in (wrapped, plain)]
    assert same(*trained)
    assert weight_hash(wrapped) == weight_hash(plain)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_is_attacked_as_the_plain_one(wrap: Callable[[nn.Module], nn.Module]) -> None:
    update, wrapped = capture_gradient(build(), IMAGES, LABELS), wrap(build())
    assert update.mismatches(wrapped) == []
    assert recover_labels(update, wrapped).labels.tolist() == [3, 7]
    anchor, expected = (peel(update, model, LABELS).anchor for model in (wrapped, build()))
    assert anchor is not None
    assert expected is not None
    assert anchor.module == expected.module
    assert torch.equal(anchor.activations, expected.activations)


def test_what_opacus_wraps_is_taken_out_without_its_hooks() -> None:
    wrapped, plain = private(build()), build()
    wrapped.train()
    update = capture_gradient(wrapped, IMAGES, LABELS)
    expected = capture_gradient(plain, IMAGES, LABELS)
    assert update.gradients.keys() == {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert all(torch.equal(update.gradients[name], expected.gradients[name]) for name in update.gradients)
    hooks = [module._forward_hooks for module in inside(wrapped).modules() if module._forward_hooks]
    assert hooks  # the training that goes on still has them
    assert not any(module._forward_hooks or module._backward_hooks for module in unwrap(wrapped).modules())
    assert not any(hasattr(p, "grad_sample") and p.grad_sample is not None for p in wrapped.parameters())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_module."])
@pytest.mark.parametrize("mode", [BatchNormMode.EVAL, BatchNormMode.TRAIN_SHARED])
def test_an_update_with_the_names_of_a_wrapper_fits_the_plain_model(
    prefix: str, mode: BatchNormMode, tmp_path: Path
) -> None:
    model = build()
    update = capture_gradient(model, IMAGES, LABELS, batch_norm=mode)
    # As it was written before wrappers were taken off: names and hash with the prefix.
    buffers = update.buffers
    older = replace(
        update,
        gradients={f"{prefix}{name}": gradient for name, gradient in update.gradients.items()},
        buffers=None if buffers is None else {f"{prefix}{name}": buffer for name, buffer in buffers.items()},
        weight_hash=weight_hash(model, prefix),
    )
    older.save(tmp_path / "update.safetensors")
    older = CapturedUpdate.load(tmp_path / "update.safetensors")
    assert older.mismatches(model) == []
    fitted = older.fitted(nn.DataParallel(model))
    assert same(fitted, update)
    assert (fitted.buffers or {}).keys() == (update.buffers or {}).keys()
    assert recover_labels(older, model).labels.tolist() == [3, 7]
    assert peel(older, model, LABELS).message == peel(update, model, LABELS).message


def test_an_update_of_other_weights_does_not_fit_for_its_prefix() -> None:
    update = capture_gradient(build(), IMAGES, LABELS)
    other = build()
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    older = replace(
        update,
        gradients={f"module.{name}": gradient for name, gradient in update.gradients.items()},
        weight_hash=weight_hash(build(), "module."),
    )
    (problem,) = older.mismatches(other)
    assert "weight hash" in problem


def test_a_model_whose_own_names_look_like_a_wrapper_keeps_them() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = build()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.module(images)
            return logits

    update = capture_gradient(Holder(), IMAGES, LABELS)
    assert all(name.startswith("module.") for name in update.gradients)
    assert fit(update, Holder())[0] is update
    assert update.mismatches(Holder()) == []


@pytest.mark.parametrize("architecture", [lambda: nn.DataParallel(build()), lambda: torch.compile(build()), build])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_states_and_architecture_may_each_be_wrapped(architecture: Callable[[], nn.Module], prefix: str) -> None:
    before, after = build(), build()
    with torch.no_grad():
        after.get_parameter("0.weight").add_(0.01)
    states = [{f"{prefix}{name}": value for name, value in m.state_dict().items()} for m in (before, after)]
    update = capture_state_dicts(
        architecture(), states[0], states[1], image_count=2, image_shape=(3, 32, 32), local=LOCAL
    )
    expected = capture_weight_delta(before, after, image_count=2, image_shape=(3, 32, 32), local=LOCAL)
    assert same(update, expected)
    wrapped = capture_weight_delta(
        nn.DataParallel(before), nn.DataParallel(after), image_count=2, image_shape=(3, 32, 32), local=LOCAL
    )
    assert same(wrapped, expected)
    by_state = capture_weight_delta(before, states[1], image_count=2, image_shape=(3, 32, 32), local=LOCAL)
    assert same(by_state, expected)


def wrapped_convnet(num_classes: int) -> nn.Module:
    return nn.DataParallel(compiled(load_model("convnet", num_classes)))


def test_a_callable_may_return_a_wrapped_model() -> None:
    found = load_model(f"{__name__}:wrapped_convnet")
    assert weight_hash(found) == weight_hash(load_model("convnet"))
    assert type(found) is nn.Sequential


def test_what_is_no_model_is_a_sentence() -> None:
    with pytest.raises(ModelError, match=r"the model is a OrderedDict; give a torch\.nn\.Module"):
        capture_gradient(build().state_dict(), IMAGES, LABELS)  # type: ignore[arg-type]
    with pytest.warns((FutureWarning, DeprecationWarning), match="deprecated"):
        scripted = torch.jit.script(build())
    with pytest.raises(ModelError, match="into which nobody can look"):
        capture_gradient(scripted, IMAGES, LABELS)

"""The final layer is traced once, and read anew from each update."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields, replace

import pytest
import torch
from gradinversion.capture import (
    BatchNormMode,
    CapturedUpdate,
    LabelError,
    OneLook,
    capture_gradient,
    find_final_layer,
    load_images,
    load_model,
    told,
)
from gradinversion.capture.labels import one_look
from gradinversion.capture.labels.final_layer import FinalLayer, TracedLayer, trace_final_layer
from torch import Tensor, nn


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[CapturedUpdate]:
    """The updates for which the layer was traced."""
    asked: list[CapturedUpdate] = []

    def trace(update: CapturedUpdate, model: nn.Module) -> TracedLayer | None:
        asked.append(update)
        return trace_final_layer(update, model)

    monkeypatch.setattr(one_look, "trace_final_layer", trace)
    return asked


def _update(model: nn.Module, count: int = 3, batch_norm: str = "eval") -> CapturedUpdate:
    return capture_gradient(model, load_images("photos", count, 32)[0], torch.arange(count), batch_norm=batch_norm)


def _same(one: FinalLayer, other: FinalLayer) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(FinalLayer)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def test_what_changes_the_update_is_read_and_not_traced_again(traced: list[CapturedUpdate]) -> None:
    model, look = load_model("convnet"), OneLook()
    update = _update(model)
    turned = replace(update, gradients={name: -2 * gradient for name, gradient in update.gradients.items()})
    for one in (update, turned, update.stating(label_smoothing=told(0.2))):
        assert _same(look.final_layer(one, model), find_final_layer(one, model))
    assert len(traced) == 1


def test_another_model_or_mode_or_batch_is_traced_anew(traced: list[CapturedUpdate]) -> None:
    model, look = load_model("convnet"), OneLook()
    update = _update(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(list(update.gradients)[-2]).mul_(2)
    asked = [
        (update, model),
        (update, other),
        (_update(model, batch_norm="train_private"), model),
        (_update(model, 4), model),
    ]
    assert asked[2][0].batch_norm is not BatchNormMode.EVAL
    for one in asked:
        assert _same(look.final_layer(*one), find_final_layer(*one))
    assert len(traced) == len(asked)


def test_a_model_without_such_a_layer_is_not_traced_again_either(traced: list[CapturedUpdate]) -> None:
    model, look = nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten()), OneLook()
    update = _update(model)
    for _ in range(2):
        with pytest.raises(LabelError, match="not the output of a fully connected layer"):
            look.final_layer(update, model)
    assert len(traced) == 1


def test_a_look_travels_empty(traced: list[CapturedUpdate]) -> None:
    model, look = load_model("convnet"), OneLook()
    update = _update(model)
    look.final_layer(update, model)
    there = pickle.loads(pickle.dumps(look))
    assert _same(there.final_layer(update, model), look.final_layer(update, model))
    assert len(traced) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_handed_on_as_it_was_sent(dtype: torch.dtype) -> None:
    model = load_model("convnet").to(dtype)
    update = _update(model)
    layer = find_final_layer(update, model)
    *_, weight_gradient, _ = update.gradients.values()
    assert layer.sent.dtype is dtype
    assert torch.equal(layer.sent, weight_gradient)

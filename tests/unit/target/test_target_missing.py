from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradinversion.capture import CapturedUpdate, UpdateError, capture_gradient
from gradinversion.coordinator import AttackConfig
from gradinversion.target.missing import check_missing
from gradinversion.target.preparation import prepare
from torch import nn


def _model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(32, 10))
    model.eval()
    return model


def _update(model: nn.Module) -> CapturedUpdate:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return capture_gradient(model, images, torch.tensor([1, 4]))


@pytest.mark.parametrize("gone", [("0.weight",), ("2.weight", "2.bias"), ("0.weight", "0.bias", "2.weight")])
def test_an_attack_goes_on_without_gradients_that_were_not_sent(gone: tuple[str, ...]) -> None:
    model = _model()
    update = _update(model)
    update = replace(update, gradients={name: g for name, g in update.gradients.items() if name not in gone})
    prepared = prepare(update, model, AttackConfig().request)
    assert prepared.labels.labels.tolist() == [1, 4]
    assert any(f"lacks the gradients of {len(gone)} of the 6 tensors" in message for message in prepared.messages)
    assert all(name in " ".join(prepared.messages) for name in gone)


def test_nothing_is_said_of_a_whole_update_or_of_frozen_layers() -> None:
    model = _model()
    assert not check_missing(_update(model), model).messages
    model[0].requires_grad_(False)
    assert not check_missing(_update(model), model).messages


def test_gradients_that_lack_and_other_weights_are_another_model() -> None:
    update = _update(_model())
    update = replace(update, gradients={name: g for name, g in update.gradients.items() if name != "0.weight"})
    with pytest.raises(UpdateError, match="another model"):
        prepare(update, _model(seed=1), AttackConfig().request)

"""What every seed is given before the first step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradinversion.agents import ObjectiveConfig
from gradinversion.capture import capture_gradient, load_model
from gradinversion.coordinator import AttackConfig
from gradinversion.coordinator.preparation import prepare


@pytest.mark.parametrize("defence", ["soteria 0.1", "soteria 0.1 + clip 1"])
def test_a_representation_that_the_client_perturbed_is_not_peeled(defence: str) -> None:
    model = load_model("convnet", image_size=16)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    update = replace(capture_gradient(model, images, torch.tensor([1, 4])), defence=defence)
    allowing = prepare(update, model, AttackConfig())
    assert allowing.target.anchor is None
    assert any("Soteria" in message and "left out" in message for message in allowing.messages)
    naive = prepare(update, model, AttackConfig(objective=ObjectiveConfig(adaptive=False)))
    assert naive.target.anchor is not None

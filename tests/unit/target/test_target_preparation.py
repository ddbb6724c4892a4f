"""What every seed is given before the first step."""

from __future__ import annotations

import pytest
import torch
from gradinversion.agents import ObjectiveConfig
from gradinversion.capture import Defence, UpdateError, capture_gradient, load_model, told
from gradinversion.coordinator import AttackConfig
from gradinversion.peeling import PeelingConfig
from gradinversion.target.preparation import prepare


@pytest.mark.parametrize("defences", [(Defence("soteria", 0.1),), (Defence("soteria", 0.1), Defence("clip", 1))])
def test_a_representation_that_the_client_perturbed_is_not_peeled(defences: tuple[Defence, ...]) -> None:
    model = load_model("convnet", image_size=16)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    update = capture_gradient(model, images, torch.tensor([1, 4])).stating(defences=told(defences))
    allowing = prepare(update, model, AttackConfig(peeling=PeelingConfig(taps=False)).request)
    assert allowing.target.anchor is None
    assert any("Soteria" in message and "left out" in message for message in allowing.messages)
    # What convolutions say is not perturbed.
    by_taps = prepare(update, model, AttackConfig().request).target.anchor
    assert by_taps is not None
    assert by_taps.module == "0"
    torch.testing.assert_close(by_taps.activations.float(), update.normalisation.apply(images), rtol=0, atol=1e-3)
    naive = prepare(update, model, AttackConfig(objective=ObjectiveConfig(adaptive=False)).request)
    assert naive.target.anchor is not None


def test_the_update_of_another_model_is_refused() -> None:
    model, other = load_model("convnet"), load_model("convnet")
    update = capture_gradient(model, torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
    with torch.no_grad():
        list(other.parameters())[-1][0] += 1
    with pytest.raises(UpdateError, match="made with another model than the one given"):
        prepare(update, other, AttackConfig().request)

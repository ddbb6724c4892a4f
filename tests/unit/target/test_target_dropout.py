"""Dropout that the attack cannot retrace, and pixels that a wrong normalisation puts out of range."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import IMAGENET, CapturedUpdate, Normalisation, assumed, capture_gradient, told
from gradinversion.coordinator import AttackConfig
from gradinversion.target import weigh_evidence
from gradinversion.target.preparation import prepare
from torch import Tensor, nn


class Functional(nn.Module):
    """Draws in training mode without a layer that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(F.dropout(x.flatten(1), 0.5, self.training))
        return result


def network(dropout: float) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 10)]
    return nn.Sequential(*layers).eval()


def capture(model: nn.Module, **facts: Any) -> CapturedUpdate:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return capture_gradient(model, images, torch.tensor([1, 4])).stating(**facts)


@pytest.mark.parametrize("model", [network(0.5), Functional().eval()])
def test_active_dropout_is_a_limit_of_the_attack(model: nn.Module) -> None:
    (limit,) = weigh_evidence(capture(model, dropout=told(True)), model).limits
    assert "dropout or stochastic depth was active" in limit
    assert not model.training


def test_without_layers_that_draw_or_with_dropout_off_there_is_no_limit() -> None:
    assert not weigh_evidence(capture(network(0.0), dropout=told(True)), network(0.0)).limits
    assert not weigh_evidence(capture(network(0.5)), network(0.5)).limits


def test_whether_dropout_was_active_decides_only_where_the_model_has_it() -> None:
    for model, decides in ((network(0.5), True), (network(0.0), False)):
        stated = weigh_evidence(capture(model, dropout=assumed(False)), model).stated(model)
        assert [fact.doubtful for fact in stated if fact.name == "dropout"] == [decides]


def test_pixels_out_of_range_contradict_the_normalisation() -> None:
    model = network(0.0)
    right = prepare(capture(model), model, AttackConfig().request)
    assert not [fact for fact in right.facts if fact.contradiction]
    wrong = capture(model, normalisation=told(Normalisation((0.0,) * 3, (1.0,) * 3)))
    (fact,) = [fact for fact in prepare(wrong, model, AttackConfig().request).facts if fact.contradiction]
    assert fact.name == "normalisation"
    assert "pixels lie in 0 to 1" in fact.contradiction
    assert right.target.update.normalisation == IMAGENET

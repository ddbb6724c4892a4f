"""The scale of a gradient, from how the features behind the final layer fit together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.capture import CapturedUpdate, LocalFacts, LocalTraining, UpdateKind, find_final_layer, told
from gradinversion.peeling import find_scale, peel
from torch import nn


def network(classes: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, classes)
    )


def _scale(update: CapturedUpdate, case: Any) -> float | None:
    return find_scale(find_final_layer(update, case.model), case.labels)


@pytest.mark.parametrize("factor", [0.3, 0.8, 1.0, 1.05, 3.0])
@pytest.mark.parametrize("batch_norm", ["eval", "train_private"])
def test_scale_is_found(capture: Callable[..., Any], factor: float, batch_norm: str) -> None:
    case = capture(network(), [0, 2, 3, 5], batch_norm=batch_norm)
    shrunk = replace(case.update, gradients={name: g / factor for name, g in case.update.gradients.items()})
    found = _scale(shrunk, case)
    assert found == pytest.approx(factor, rel=1e-4)
    scaled = replace(case.update, gradients={name: found * g for name, g in shrunk.gradients.items()})
    assert peel(scaled, case.model, case.labels).anchor is not None


def test_scale_is_found_without_a_bias(capture: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.ReLU(), nn.Linear(20, 8, bias=False))
    case = capture(model, [1, 4, 6])
    shrunk = replace(case.update, gradients={name: g / 2 for name, g in case.update.gradients.items()})
    assert _scale(shrunk, case) == pytest.approx(2, rel=1e-3)


def test_nothing_is_claimed_where_the_gradient_does_not_tell(capture: Callable[..., Any]) -> None:
    case = capture(network(), [0, 0, 3])
    assert _scale(case.update, case) is None
    case = capture(network(classes=3), [0, 1, 2])
    assert _scale(case.update, case) is None
    case = capture(network(), [0, 2, 3, 5])
    noisy = {name: g + 0.3 * g.std() * torch.randn_like(g) for name, g in case.update.gradients.items()}
    assert _scale(replace(case.update, gradients=noisy), case) is None


def test_a_weight_delta_is_refused_politely(capture: Callable[..., Any]) -> None:
    case = capture(network(), [0, 2])
    delta = replace(
        case.update,
        kind=UpdateKind.WEIGHT_DELTA,
        facts=replace(case.update.facts, local=LocalFacts.told(LocalTraining(0.1, epochs=3))),
    )
    found = peel(delta, case.model, case.labels)
    assert found.anchor is None
    assert "the weight delta of 3 local step(s)" in found.message


def test_scale_is_found_where_the_labels_are_told_to_be_smoothed(capture: Callable[..., Any]) -> None:
    case = capture(network(), [0, 2, 3, 5])
    loss = nn.functional.cross_entropy(case.model(case.images), case.labels, label_smoothing=0.1)
    names, parameters = zip(*case.model.named_parameters(), strict=True)
    gradients = {n: g / 2 for n, g in zip(names, torch.autograd.grad(loss, parameters), strict=True)}
    shrunk = replace(case.update, gradients=gradients).stating(label_smoothing=told(0.1))
    assert _scale(shrunk, case) == pytest.approx(2, rel=1e-3)
    assert _scale(shrunk.stating(label_smoothing=told(0.0)), case) != pytest.approx(2, rel=1e-3)

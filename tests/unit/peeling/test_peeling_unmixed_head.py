"""The final layer of images that are told apart by the units that are shut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.capture import apply_defence
from gradinversion.capture.labels.final_layer import FinalLayer, find_final_layer
from gradinversion.capture.models import convnet
from gradinversion.peeling import peel
from gradinversion.peeling.head.unmixed import peel_unmixed_head
from torch import Tensor, nn

_LABELS = [[1, 1], [3, 1, 4, 1], [0, 0, 0, 0], [2, 2, 7, 7, 7, 5], [5, 0, 3]]


def _network(factor: float = 1.0) -> nn.Sequential:
    model = convnet(10, 16, width=32)
    with torch.no_grad():
        list(model.parameters())[-2].mul_(factor)
    return model


def _final(case: Any, *sent: Tensor) -> FinalLayer:
    """The final layer, with other gradients by weight and bias where they are given."""
    names = list(case.update.gradients)
    gradients = case.update.gradients | dict(zip(names[-2:], sent, strict=False))
    return find_final_layer(replace(case.update, gradients=gradients), case.model)


def _apart(found: Tensor, truth: Tensor, labels: Tensor) -> float:
    """The largest relative error of an image's features; images of one label may have changed places."""
    distance = torch.cdist(truth, found) / truth.norm(dim=1)[:, None]
    return float(distance.masked_fill(labels[:, None] != labels, float("inf")).min(1).values.max())


@pytest.mark.parametrize("labels", _LABELS)
@pytest.mark.parametrize("factor", [1.0, 20.0])
def test_features_and_cotangent(capture: Callable[..., Any], labels: list[int], factor: float) -> None:
    case = capture(_network(factor), labels, side=16)
    found = peel_unmixed_head(_final(case), case.labels)
    assert found is not None
    truth = case.model[:-1](case.images).detach().double()
    assert _apart(found.head.features, truth, case.labels) < max(3 * found.head.error, 1e-4)
    assert found.head.error < 1e-3
    assert found.scales.tolist() == [1.0] * len(labels)
    features = truth.float().requires_grad_()
    loss = nn.functional.cross_entropy(case.model[-1](features), case.labels)
    (cotangent,) = torch.autograd.grad(loss, features)
    assert _apart(found.head.cotangent, cotangent.double(), case.labels) < 1e-3


@pytest.mark.parametrize("labels", [[3, 1, 4, 1], [5, 0, 3]])
def test_a_clipped_update_shows_its_factor(capture: Callable[..., Any], labels: list[int]) -> None:
    case = capture(_network(5.0), labels, side=16)
    norm = float(torch.cat([g.flatten() for g in case.update.gradients.values()]).norm())
    clipped = replace(case.update, gradients=apply_defence(case.update.gradients, "clip", norm / 3))
    layer = find_final_layer(clipped, case.model)
    found = peel_unmixed_head(layer, case.labels)
    assert found is not None
    assert torch.allclose(found.scales, torch.full((len(labels),), 1 / 3, dtype=torch.float64), rtol=0.01)
    truth = case.model[:-1](case.images).detach().double()
    assert _apart(found.head.features, truth, case.labels) < 0.01
    assert peel_unmixed_head(layer, case.labels, scaled=False) is None


def test_labels_that_are_not_the_batch_s_are_refused(capture: Callable[..., Any]) -> None:
    case = capture(_network(), [3, 1, 4, 1], side=16)
    assert peel_unmixed_head(_final(case), torch.tensor([3, 1, 4, 2])) is None


@pytest.mark.parametrize("labels", [[3, 1, 4, 1], [2, 2, 7, 7, 7, 5]])
def test_peeling_goes_on_as_deep_as_for_labels_that_differ(capture: Callable[..., Any], labels: list[int]) -> None:
    case, other = (capture(_network(), some, side=16) for some in (labels, list(range(len(labels)))))
    anchor, expected = (peel(one.update, one.model, one.labels).anchor for one in (case, other))
    assert anchor is not None
    assert expected is not None
    assert anchor.module == expected.module
    assert anchor.error < 0.03


def test_gradients_without_a_relu_in_between_are_named_continuous(capture: Callable[..., Any]) -> None:
    case = capture(_network(), [3, 1, 4, 1, 0, 2, 7, 8], side=16)
    anchor = peel(case.update, case.model, case.labels).anchor
    assert anchor is not None
    index = int(anchor.module)
    below = [k for k in range(index) if isinstance(case.model[k], nn.ReLU)]
    first = max(below, default=-1) + 1
    assert {name.split(".")[0] for name in anchor.continuous} == {
        str(k) for k in range(first, index) if list(case.model[k].parameters())
    }


def test_another_loss_than_it_says_is_noticed(capture: Callable[..., Any]) -> None:
    case = capture(_network(), [3, 1, 4, 1], side=16)
    *_, weight, bias = case.model.parameters()
    loss = nn.functional.cross_entropy(case.model(case.images), case.labels, label_smoothing=0.1)
    found = peel_unmixed_head(_final(case, *torch.autograd.grad(loss, [weight, bias])), case.labels)
    truth = case.model[:-1](case.images).detach().double()
    assert found is None or _apart(found.head.features, truth, case.labels) < 3 * found.head.error


@pytest.mark.parametrize("factor", [0.5, 0.8])
def test_clipping_under_noise_is_not_taken_for_short_features(capture: Callable[..., Any], factor: float) -> None:
    case = capture(_network(20.0), [3, 1, 4, 0], side=16)
    *_, gradient, bias_gradient = case.update.gradients.values()
    random = torch.Generator().manual_seed(0)
    noisy = [
        factor * g + 1e-3 * factor * g.square().mean().sqrt() * torch.randn(g.shape, generator=random)
        for g in (gradient, bias_gradient)
    ]
    found = peel_unmixed_head(_final(case, *noisy), case.labels)
    truth = case.model[:-1](case.images).detach().double()
    assert found is None or _apart(found.head.features, truth, case.labels) < 3 * found.head.error

"""The final layer by least squares, where labels repeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gradinversion.capture.labels.final_layer import FinalLayer, find_final_layer
from gradinversion.capture.models import convnet
from gradinversion.peeling import peel
from gradinversion.peeling.head.least_squares import _Equations, peel_joint_head
from torch import Tensor

_REPEATS = [[1, 1], [3, 1, 4, 1], [0, 0, 0, 0], [2, 2, 7, 7, 7, 5]]


def _layer(case: Any) -> FinalLayer:
    return find_final_layer(case.update, case.model)


def _features(case: Any) -> Tensor:
    return case.model[:-1](case.images).detach().double()


def _apart(found: Tensor, truth: Tensor, labels: Tensor) -> float:
    """The largest relative error of an image's features; images of one label may have changed places."""
    distance = torch.cdist(truth, found) / truth.norm(dim=1)[:, None]
    return float(distance.masked_fill(labels[:, None] != labels, float("inf")).min(1).values.max())


@pytest.mark.parametrize("labels", _REPEATS)
def test_features_of_images_that_share_a_label(capture: Callable[..., Any], labels: list[int]) -> None:
    case = capture(convnet(10, 16, width=16), labels, side=16)
    head = peel_joint_head(_layer(case), case.labels)
    assert head is not None
    assert _apart(head.features, _features(case), case.labels) < head.error < 0.03


def test_without_the_bias_gradient(capture: Callable[..., Any]) -> None:
    case = capture(convnet(10, 16, width=16), [3, 1, 4, 1], side=16)
    head = peel_joint_head(replace(_layer(case), bias_gradient=None), case.labels)
    assert head is not None
    assert _apart(head.features, _features(case), case.labels) < max(head.error, 1e-3)


@pytest.mark.parametrize("labels", _REPEATS)
def test_peeling_goes_on_from_there(capture: Callable[..., Any], labels: list[int]) -> None:
    case = capture(convnet(10, 16, width=16), labels, side=16)
    peeling = peel(case.update, case.model, case.labels)
    assert peeling.anchor is not None
    assert "recovered each image's activations" in peeling.message


def test_a_batch_as_large_as_the_classes_is_left_alone(capture: Callable[..., Any]) -> None:
    case = capture(convnet(4, 16, width=16), [0, 0, 1, 1], side=16)
    assert peel_joint_head(_layer(case), case.labels) is None


def test_a_step_that_would_take_too_long_is_not_made(capture: Callable[..., Any]) -> None:
    case = capture(convnet(1000, 16, width=16), [0] * 24, side=16)
    assert peel_joint_head(_layer(case), case.labels) is None


def test_a_gradient_of_fewer_directions_than_images_is_left_alone(capture: Callable[..., Any]) -> None:
    case = capture(convnet(10, 16, width=16), [1, 1], side=16)
    layer = _layer(case)
    gradient = layer.sent
    one = gradient[:, :1] * gradient[:1]
    for sent in (one, torch.zeros_like(gradient), torch.full_like(gradient, float("nan"))):
        assert peel_joint_head(replace(layer, weight_gradient=sent.double()), case.labels) is None


def test_a_gradient_of_something_else_is_not_solved(capture: Callable[..., Any]) -> None:
    case = capture(convnet(10, 16, width=16), [1, 1, 2], side=16)
    layer = _layer(case)
    noise = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    head = peel_joint_head(replace(layer, weight_gradient=(noise * layer.weight_gradient.std()).double()), case.labels)
    assert head is None or head.error > 0.1


def test_the_jacobian_is_that_of_the_misfit() -> None:
    random = np.random.default_rng(0)
    batch, classes = 3, 5
    equations = _Equations(
        random.standard_normal((classes, batch)),
        random.standard_normal((batch, classes)),
        random.standard_normal(classes),
        np.eye(classes)[[1, 1, 4]],
        random.standard_normal(classes),
    )
    at = random.standard_normal(batch * batch)
    step = 1e-6
    numerical = [(equations.misfit(at + step * e) - equations.misfit(at - step * e)) / (2 * step) for e in np.eye(9)]
    assert np.allclose(equations.jacobian(at), np.array(numerical).T, atol=1e-6)


def test_a_second_call_finds_the_same(capture: Callable[..., Any]) -> None:
    case = capture(convnet(10, 16, width=16), [1, 1, 2], side=16)
    first, second = peel_joint_head(_layer(case), case.labels), peel_joint_head(_layer(case), case.labels)
    assert first is not None
    assert second is not None
    assert torch.equal(first.features, second.features)

"""The scale, the smoothing and the sign of what was sent, held against the final layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradinversion.agents import Objective, ObjectiveConfig
from gradinversion.capture import (
    Defence,
    Provenance,
    Reduction,
    assumed,
    capture_gradient,
    find_final_layer,
    load_images,
    load_model,
    recover_labels,
    told,
)
from gradinversion.capture.labels.sign import Sign, read_sign
from gradinversion.target import Target, check_scale, check_smoothing, weigh_evidence
from torch import nn


@pytest.mark.parametrize("factor", [4.0, 65536.0])
def test_what_no_mean_can_be_is_read_as_an_open_scale(make_case: Callable[..., Any], factor: float) -> None:
    case = make_case()
    sent = case.sending(lambda name, g: factor * g)
    finding = check_scale(sent, case.model)
    assert finding.facts["loss_scale"].value is None
    assert "cannot sum to more than 1" in finding.contradictions["loss_scale"]
    # Nobody said what it was, so that nothing is contradicted.
    silent = sent.stating(loss_scale=assumed(1.0), reduction=assumed(Reduction.MEAN))
    assert not check_scale(silent, case.model).contradictions
    # A sum that was told as one is none of a mean.
    summed = case.sending(lambda name, g: 4 * g).stating(reduction=told(Reduction.SUM))
    assert not check_scale(summed, case.model, case.labels).facts


@pytest.mark.parametrize("factor", [4.0, 65536.0, 0.25])
def test_the_true_images_cost_nothing_at_another_scale(make_case: Callable[..., Any], factor: float) -> None:
    case = make_case()
    sent = case.sending(lambda name, g: factor * g)
    truth = sent.normalisation.apply(case.images)
    objective = Objective(Target(sent, case.model, case.labels), ObjectiveConfig())
    assert objective.gradient_loss(truth) < 1e-5
    assert any("one common factor" in message for message in objective.messages)
    told_scale = sent.stating(loss_scale=told(factor))
    assert Objective(Target(told_scale, case.model, case.labels), ObjectiveConfig()).gradient_loss(truth) < 1e-6


def test_a_scale_that_is_too_small_needs_labels_and_no_clipping(make_case: Callable[..., Any]) -> None:
    case = make_case()
    sent = case.sending(lambda name, g: 0.25 * g)
    assert not check_scale(sent, case.model).facts
    assert "0.25 times as large" in check_scale(sent, case.model, case.labels).messages[0]
    clipped = sent.stating(defences=told((Defence("clip", 0.5),)))
    assert not check_scale(clipped, case.model, case.labels).facts
    assert not check_scale(case.update, case.model, case.labels).facts


@pytest.mark.parametrize(("labels", "smoothing"), [((0, 1, 2, 3), 0.1), ((5, 5, 2, 3), 0.1), ((0, 1, 2, 3), 0.3)])
def test_smoothing_is_read(make_case: Callable[..., Any], labels: tuple[int, ...], smoothing: float) -> None:
    case = make_case(labels=labels, loss=nn.CrossEntropyLoss(label_smoothing=smoothing))
    silent = case.update.stating(label_smoothing=assumed(0.0))
    assert check_smoothing(silent, case.model, case.labels).facts["label_smoothing"].value == pytest.approx(smoothing)
    assert not check_smoothing(case.update, case.model, case.labels).facts
    truth = case.update.normalisation.apply(case.images)
    assert Objective(Target(case.update, case.model, case.labels), ObjectiveConfig()).gradient_loss(truth) < 1e-6
    assert recover_labels(case.update, case.model).labels.tolist() == sorted(labels)


def test_no_smoothing_is_found_where_there_is_none(make_case: Callable[..., Any]) -> None:
    case = make_case()
    assert not check_smoothing(case.update.stating(label_smoothing=assumed(0.0)), case.model, case.labels).facts


@pytest.mark.parametrize("labels", [(3,), (3, 7), (1, 3, 7, 7)])
def test_a_reversed_sign_is_turned(make_case: Callable[..., Any], labels: tuple[int, ...]) -> None:
    case = make_case(labels=labels)
    turned = case.sending(lambda name, g: -g)
    evidence = weigh_evidence(turned, case.model)
    assert "sign" in evidence.messages[0]
    assert all(torch.equal(evidence.update.gradients[name], g) for name, g in case.update.gradients.items())
    found = recover_labels(turned, case.model)
    assert found.labels.tolist() == sorted(labels)
    assert any("sign" in warning for warning in found.warnings)
    assert not weigh_evidence(case.update, case.model).messages


def test_labels_of_every_class_prove_no_sign(make_case: Callable[..., Any]) -> None:
    case = make_case(labels=tuple(range(10)))
    turned = case.sending(lambda name, g: -g)
    assert torch.equal(weigh_evidence(turned, case.model).update.gradients["13.bias"], turned.gradients["13.bias"])


@pytest.mark.parametrize("labels", [(3,), (3, 7), (1, 3, 7, 7), (0, 1, 2, 3)])
@pytest.mark.parametrize("sureness", [3.0, 10.0, 30.0])
def test_smoothed_labels_of_a_sure_network_are_no_reversed_sign(labels: tuple[int, ...], sureness: float) -> None:
    """Its outputs lie below what smoothing gives every class, so that most rows are negative."""
    model = load_model("convnet", 10, 32)
    with torch.no_grad():
        model.get_parameter("13.weight").mul_(sureness)
    images, _ = load_images("photos", len(labels), 32)
    update = capture_gradient(model, images, torch.tensor(labels), loss=nn.CrossEntropyLoss(label_smoothing=0.2))
    layer = find_final_layer(update.stating(label_smoothing=assumed(0.0)), model)
    assert read_sign(layer, len(labels)) is not Sign.REVERSED
    assert read_sign(find_final_layer(update, model), len(labels)) is Sign.POSSIBLE


def test_more_negative_classes_than_images_are_a_doubt_without_confidence(make_case: Callable[..., Any]) -> None:
    case = make_case(labels=(0, 1, 2, 3, 4, 5, 6))
    fewer = case.update.stating(image_count=told(3))
    found = weigh_evidence(fewer, case.model)
    assert (found.update.image_count, found.update.facts.image_count.provenance) == (7, Provenance.READ)
    assert any("is a lower bound" in limit for limit in found.limits)
    assert float(recover_labels(fewer, case.model, "counts").confidence.max()) <= 0.5

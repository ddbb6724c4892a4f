"""The three matches: one form, the same loss over all parameters, and what is compared of which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gradinversion.agents import GradientLoss
from gradinversion.agents.local_steps import LocalSteps
from gradinversion.agents.matches import Anchored, Comparison, Match, Plain, Retraced
from gradinversion.capture import ClientLoss, LocalTraining, mean_gradients, train_locally
from gradinversion.peeling import peel
from gradinversion.priors import InputStatistics
from gradinversion.target.adaptation import Adaptation


@pytest.fixture
def made(smooth_target: Callable[..., Any]) -> SimpleNamespace:
    """Each match of the same gradient, the model, the labels, and the private images."""
    target, truth = smooth_target()
    update, model, labels = target.update, target.model, target.labels
    gradients = Comparison.of(model, mean_gradients(update), GradientLoss.RELATIVE_L2, Adaptation(), scale_known=True)
    plain = Plain(model, labels, ClientLoss.of(update.facts), gradients)
    anchor = peel(update, model, labels).anchor
    assert anchor is not None
    # One step on all images is the gradient.
    one_step = train_locally(
        model,
        update.normalisation.invert(truth),
        labels,
        local=LocalTraining(0.5),
        normalisation=update.normalisation,
        batch_norm="eval",
    )
    retraced = Retraced(LocalSteps(model, gradients.names, labels, one_step), gradients)
    anchored = Anchored(model, anchor, plain, gradients, jump_weight=0.1)
    return SimpleNamespace(
        plain=plain,
        retraced=retraced,
        anchored=anchored,
        model=model,
        labels=labels,
        truth=truth,
        nothing=InputStatistics({}),
    )


@pytest.mark.parametrize("name", ["plain", "retraced", "anchored"])
def test_every_match_is_met_by_the_private_images_alone(made: SimpleNamespace, name: str) -> None:
    match: Match = getattr(made, name)
    terms = match.terms(made.truth.clone().requires_grad_(), made.labels, made.nothing)
    assert terms.keys() == ({"gradient", "activation"} if name == "anchored" else {"gradient"})
    assert all(float(value.detach()) < 1e-6 for value in terms.values())
    away = match.terms((made.truth + 0.3).requires_grad_(), made.labels, made.nothing)
    assert all(float(value.detach()) > 1e-3 for value in away.values())


def test_all_measure_a_batch_by_the_same_loss(made: SimpleNamespace) -> None:
    images = made.truth + 0.3
    expected = made.plain.gradient_loss(images)
    assert expected > 0.01
    assert made.anchored.gradient_loss(images) == expected
    assert made.retraced.gradient_loss(images) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["plain", "retraced", "anchored"])
def test_statistics_are_there_without_the_gradient(made: SimpleNamespace, name: str) -> None:
    match: Match = getattr(made, name)
    with InputStatistics({"1": made.model[1]}) as statistics:
        match.observe(made.truth, statistics)
    mean, var = statistics.found["1"]
    inputs = made.model[0](made.truth)
    torch.testing.assert_close(mean, inputs.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(var, inputs.var(dim=(0, 2, 3), correction=0))


def test_fewer_parameters_keep_their_order_and_have_equal_weights(smooth_target: Callable[..., Any]) -> None:
    target, _ = smooth_target()
    gradients = mean_gradients(target.update)
    whole = Comparison.of(target.model, gradients, GradientLoss.COSINE, Adaptation(), scale_known=False)
    names = list(gradients)
    assert whole.names == tuple(names)
    few = replace(whole, weights=(0.5,) * len(names)).only({names[3], names[0]})
    assert few.names == (names[0], names[3])
    assert few.weights is None
    assert torch.equal(few.targets[1], gradients[names[3]])
    assert few.parameters[1] is dict(target.model.named_parameters())[names[3]]
    assert (few.loss, few.scale_known) == (GradientLoss.COSINE, False)


def test_a_scale_that_is_not_known_costs_nothing(smooth_target: Callable[..., Any]) -> None:
    target, _ = smooth_target()
    gradients = mean_gradients(target.update)
    twice = [2 * gradient for gradient in gradients.values()]
    distances = [
        float(Comparison.of(target.model, gradients, GradientLoss.RELATIVE_L2, Adaptation(), known).distance(twice))
        for known in (True, False)
    ]
    assert distances == pytest.approx([1, 0], abs=1e-9)


def test_an_output_that_depends_on_nothing_has_derivatives_of_zero(smooth_target: Callable[..., Any]) -> None:
    target, _ = smooth_target()
    gradients = mean_gradients(target.update)
    whole = Comparison.of(target.model, gradients, GradientLoss.COSINE, Adaptation(), scale_known=True)
    found = whole.derivatives(torch.ones(()))
    assert [one.shape for one in found] == [gradient.shape for gradient in gradients.values()]
    assert not any(bool(one.any()) for one in found)

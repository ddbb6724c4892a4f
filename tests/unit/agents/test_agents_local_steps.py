"""A candidate retraces the client's local steps: exact at the private images, and equal to a gradient for one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.agents import AgentsConfig, Inverter, Objective, ObjectiveConfig
from gradinversion.capture import (
    CapturedUpdate,
    LocalFacts,
    LocalTraining,
    UpdateKind,
    as_gradient,
    client_mode,
    gradient_shares,
    mean_gradients,
    told,
    train_locally,
)
from gradinversion.target import Target
from torch import Tensor

SmoothTarget = Callable[..., tuple[Target, Tensor]]

TRAININGS = [
    LocalTraining(0.1),
    LocalTraining(0.1, epochs=3),
    LocalTraining(0.05, epochs=2, batch_size=2),
    LocalTraining(0.05, epochs=2, batch_size=2, momentum=0.9, weight_decay=0.01),
    LocalTraining(0.05, epochs=2, batch_size=3, momentum=0.5),
]


def _after(descends: Inverter, *run: Any) -> Tensor:
    """The images after a run."""
    descends.run(*run)
    return descends.images


def trained(smooth_target: SmoothTarget, local: LocalTraining, batch_norm: str = "eval") -> tuple[Target, Tensor]:
    """A client of four images that trained; double precision."""
    target, images = smooth_target(batch_norm, batch=4)
    update = train_locally(
        target.model,
        target.update.normalisation.invert(images),
        target.labels,
        local=local,
        normalisation=target.update.normalisation,
        batch_norm=batch_norm,
    )
    return replace(target, update=update), images


@pytest.mark.parametrize("batch_norm", ["eval", "train_shared", "train_private"])
@pytest.mark.parametrize("local", TRAININGS)
def test_delta_and_statistics_are_matched_at_the_private_images(
    smooth_target: SmoothTarget, local: LocalTraining, batch_norm: str
) -> None:
    target, images = trained(smooth_target, local, batch_norm)
    objective = Objective(target, ObjectiveConfig())
    terms = objective.terms(images.clone().requires_grad_())
    assert float(terms["gradient"].detach()) < 1e-9
    assert objective.gradient_loss(images) < 1e-9
    assert objective.evidence(images) < 1e-9
    if batch_norm == "train_shared":
        assert float(terms["batch_norm"].detach()) < 1e-9
    wrong = images.flip(0)
    assert objective.gradient_loss(wrong) > 1e-3


@pytest.mark.parametrize("momentum", [0.3, 1.0, None])
def test_statistics_are_matched_at_any_momentum_of_batch_norm(
    smooth_target: SmoothTarget, momentum: float | None
) -> None:
    target, images = smooth_target("train_shared", batch=3)
    for layer in target.model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = momentum
    pixels = target.update.normalisation.invert(images)
    facts = {"normalisation": target.update.normalisation, "batch_norm": "train_shared"}
    local = LocalTraining(0.1, epochs=2, batch_size=2)
    update = train_locally(target.model, pixels, target.labels, local=local, **facts)  # type: ignore[arg-type]
    terms = Objective(replace(target, update=update), ObjectiveConfig()).terms(images.clone().requires_grad_())
    assert float(terms["batch_norm"].detach()) < 1e-8


@pytest.mark.parametrize("local", TRAININGS[2:4])
def test_derivative_by_the_images_is_that_of_finite_differences(
    smooth_target: SmoothTarget, local: LocalTraining
) -> None:
    target, images = trained(smooth_target, local)
    objective = Objective(target, ObjectiveConfig(gradient_loss="squared_l2", total_variation_weight=0.0))  # type: ignore[arg-type]
    images = images + 0.3 * torch.randn_like(images)
    images.requires_grad_()
    (derivative,) = torch.autograd.grad(objective.terms(images)["total"], images)
    direction = torch.randn_like(images)
    size = 1e-5
    ahead, behind = (
        float(objective.terms((images + sign * size * direction).detach().requires_grad_())["total"].detach())
        for sign in (1, -1)
    )
    assert float((derivative * direction).sum()) == pytest.approx((ahead - behind) / (2 * size), rel=1e-5)


def test_the_model_is_left_as_it_was(smooth_target: SmoothTarget) -> None:
    target, images = trained(smooth_target, TRAININGS[3], "train_shared")
    before = {name: tensor.clone() for name, tensor in target.model.state_dict().items()}
    objective = Objective(target, ObjectiveConfig())
    objective.terms(images.requires_grad_())
    for name, tensor in objective._model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_one_step_is_the_gradient_bit_for_bit_where_the_division_is_exact(smooth_target: SmoothTarget) -> None:
    gradient, _ = smooth_target(dtype=torch.float32)
    delta = replace(
        gradient.update,
        gradients={name: -0.25 * g for name, g in gradient.update.gradients.items()},  # a power of two rounds nothing
        kind=UpdateKind.WEIGHT_DELTA,
        facts=replace(gradient.update.facts, local=LocalFacts.told(LocalTraining(0.25))),
    )
    again = as_gradient(delta, gradient.model)
    assert again.kind is UpdateKind.GRADIENT
    assert all(torch.equal(again.gradients[name], g) for name, g in gradient.update.gradients.items())
    config = AgentsConfig(iterations=20)
    images = [
        _after(Inverter(Objective(target, ObjectiveConfig()), config, seed=0), 20, None)
        for target in (gradient, replace(gradient, update=again))
    ]
    assert torch.equal(*images)


def test_one_step_that_was_retraced_descends_as_the_gradient_does(smooth_target: SmoothTarget) -> None:
    target, _ = trained(smooth_target, LocalTraining(0.5))
    config = AgentsConfig(iterations=10, sign=False)
    images = [
        _after(Inverter(Objective(replace(target, update=update), ObjectiveConfig()), config, seed=0), 10, None)
        for update in (target.update, as_gradient(target.update, target.model))
    ]
    torch.testing.assert_close(*images, rtol=0, atol=1e-6)


def test_several_steps_are_not_one_gradient(smooth_target: SmoothTarget) -> None:
    target, images = trained(smooth_target, LocalTraining(0.5, epochs=4))
    naive = Objective(replace(target, update=as_gradient(target.update, target.model)), ObjectiveConfig())
    assert naive.gradient_loss(images) > 0.01


def test_with_an_open_scale_a_wrong_learning_rate_costs_little(smooth_target: SmoothTarget) -> None:
    target, images = trained(smooth_target, LocalTraining(0.01, epochs=2, batch_size=2))
    assert target.update.local is not None
    guessed = target.update.stating(learning_rate=told(0.012))
    fixed = Objective(replace(target, update=guessed), ObjectiveConfig())
    scaled = Objective(replace(target, update=guessed, scale_known=False), ObjectiveConfig())
    assert fixed.gradient_loss(images) > 0.1
    assert scaled.gradient_loss(images) < 0.05
    assert float(scaled.terms(images.requires_grad_())["gradient"].detach()) == pytest.approx(
        scaled.gradient_loss(images)
    )


def test_without_an_order_each_step_is_made_on_all_images(smooth_target: SmoothTarget) -> None:
    target, images = trained(smooth_target, LocalTraining(0.05, epochs=2, batch_size=2))
    assert target.update.local is not None
    unordered = replace(target, update=target.update.stating(shuffled=told(True)))
    turned = torch.tensor([1, 0, 2, 3])
    objectives = [
        Objective(replace(unordered, labels=labels), ObjectiveConfig())
        for labels in (target.labels, target.labels[turned])
    ]
    assert objectives[0].gradient_loss(images) == pytest.approx(objectives[1].gradient_loss(images[turned]), rel=1e-9)


def test_images_of_one_label_are_exchanged_within_a_step_alone(smooth_target: SmoothTarget) -> None:
    target, _ = trained(smooth_target, LocalTraining(0.1, epochs=2, batch_size=2))
    same = replace(target, labels=torch.tensor([1, 1, 1, 4]))
    groups = same.interchangeable.tolist()
    assert groups[0] == groups[1] != groups[2]
    assert len(set(groups)) == 3
    for local in (LocalTraining(0.1, epochs=2), LocalTraining(0.1, batch_size=2, shuffled=True)):
        free = replace(
            same, update=replace(same.update, facts=replace(same.update.facts, local=LocalFacts.told(local)))
        )
        assert torch.equal(free.interchangeable, same.labels)


def test_momentum_lets_early_gradients_work_on() -> None:
    assert gradient_shares(LocalTraining(0.1, epochs=3, momentum=0.5), 4) == [1.75, 1.5, 1.0]
    assert gradient_shares(LocalTraining(0.1, batch_size=2), 3) == [1.0, 1.0]


def test_mean_gradient_of_full_batches_is_near_the_gradient_at_a_small_rate(smooth_target: SmoothTarget) -> None:
    target, images = trained(smooth_target, LocalTraining(1e-5, epochs=5, momentum=0.9, weight_decay=0.1))
    parameters = dict(target.model.named_parameters())
    with client_mode(target.model, "eval"):
        loss = torch.nn.functional.cross_entropy(target.model(images), target.labels)
        expected = torch.autograd.grad(loss, list(parameters.values()))
    found: CapturedUpdate = as_gradient(target.update, target.model)
    for gradient, name in zip(expected, parameters, strict=True):
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-2, atol=1e-5)
    plain = mean_gradients(target.update)
    assert any(not torch.allclose(plain[name], found.gradients[name]) for name in plain)

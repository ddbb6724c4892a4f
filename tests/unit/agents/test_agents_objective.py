"""The whole objective: its sum, its second derivative, its types, and the ways in which it can be empty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.agents import (
    Form,
    GradientLoss,
    Objective,
    ObjectiveConfig,
    TotalVariation,
)
from gradinversion.capture import Normalisation, capture_gradient, weight_hash
from gradinversion.peeling import peel
from gradinversion.refusal import Refusal
from gradinversion.target import Target
from torch import Tensor, nn

_WEIGHTS = {
    "gradient": 0.7,
    "activation": 0.6,
    "total_variation": 0.5,
    "l2": 0.4,
    "batch_norm": 0.3,
    "group": 0.2,
}
_EVERYTHING: dict[str, Any] = {f"{name}_weight": weight for name, weight in _WEIGHTS.items()}


def _with_anchor(target: Target) -> Target:
    anchor = peel(target.update, target.model, target.labels).anchor
    assert anchor is not None
    return replace(target, anchor=anchor)


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("form", ["paper", "scale_free"])
def test_the_total_is_the_weighted_sum_of_all_terms(
    smooth_target: Callable[..., Any], form: str, anchored: bool
) -> None:
    target, truth = smooth_target()
    target = _with_anchor(target) if anchored else target
    terms = Objective(target, ObjectiveConfig(form=Form(form), **_EVERYTHING)).terms(truth + 0.3, truth)
    names = set(_WEIGHTS) - (set() if anchored else {"activation"})
    assert set(terms) == names | {"total"}
    total = sum(_WEIGHTS[name] * float(terms[name].detach()) for name in names)
    assert float(terms["total"].detach()) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("batch_norm", ["eval", "train_shared", "train_private"])
@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"form": "paper", "gradient_loss": "layer_l2", "total_variation": "anisotropic"},
        {"form": "scale_free", "gradient_loss": "relative_l2"},
        {"gradient_loss": "squared_l2"},
        {"gradient_loss": "cosine", "total_variation": "anisotropic"},
    ],
    ids=lambda options: options["gradient_loss"],
)
def test_the_derivative_by_the_images(
    smooth_target: Callable[..., Any], batch_norm: str, anchored: bool, options: dict[str, Any]
) -> None:
    # A second derivative of the network: the objective itself contains the first.
    target, truth = smooth_target(batch_norm, activation=nn.Tanh)
    target = _with_anchor(target) if anchored else target
    objective = Objective(target, ObjectiveConfig(**options, **_EVERYTHING))
    consensus = truth + 0.1 * torch.randn_like(truth)
    images = (truth + 0.3 * torch.randn_like(truth)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective.terms(x, consensus)["total"], (images,))


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("image_dtype", [torch.float32, torch.float64])
def test_model_and_images_may_have_different_types(
    smooth_target: Callable[..., Any], model_dtype: torch.dtype, image_dtype: torch.dtype, anchored: bool
) -> None:
    target, truth = smooth_target(dtype=model_dtype)
    target = _with_anchor(target) if anchored else target
    objective = Objective(target, ObjectiveConfig())
    images = truth.to(image_dtype).requires_grad_()
    terms = objective.terms(images)
    (derivative,) = torch.autograd.grad(terms["total"], images)
    assert terms["gradient"].dtype is model_dtype
    assert derivative.dtype is image_dtype
    assert float(terms["gradient"].detach()) < 1e-5
    assert objective.gradient_loss(images.detach()) < 1e-5


def test_the_model_that_was_given_is_left_alone(smooth_target: Callable[..., Any]) -> None:
    target, truth = smooth_target("train_private")
    target.model.train()
    before = {name: value.clone() for name, value in target.model.state_dict().items()}
    objective = Objective(target, ObjectiveConfig())
    objective.terms(truth.clone().requires_grad_())["total"].backward()
    objective.gradient_loss(truth)
    assert all(module.training for module in target.model.modules())
    assert all(parameter.grad is None for parameter in target.model.parameters())
    assert all(bool((value == before[name]).all()) for name, value in target.model.state_dict().items())


def test_terms_of_weight_zero_are_left_out(smooth_target: Callable[..., Any]) -> None:
    target, truth = smooth_target()
    config = ObjectiveConfig(gradient_weight=0, total_variation_weight=0, l2_weight=0.5, group_weight=0)
    terms = Objective(target, config).terms(truth, truth)
    assert set(terms) == {"l2", "batch_norm", "total"}


def test_group_consistency_waits_for_a_consensus(smooth_target: Callable[..., Any]) -> None:
    target, truth = smooth_target()
    objective = Objective(target, ObjectiveConfig(group_weight=1.0))
    assert "group" not in objective.terms(truth)
    assert float(objective.terms(truth, truth + 0.5)["group"]) == pytest.approx(0.5, rel=1e-6)


def _captured_again(target: Target) -> Target:
    """The target with the hash of its model as that is now."""
    return replace(target, update=replace(target.update, weight_hash=weight_hash(target.model)))


def test_statistics_of_a_trained_network_are_a_prior_although_its_counter_is_zero(
    smooth_target: Callable[..., Any],
) -> None:
    target, truth = smooth_target()
    for layer in target.model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.get_buffer("num_batches_tracked").zero_()  # as in converted weights
    objective = Objective(target, ObjectiveConfig())
    assert "batch_norm" in objective.terms(truth)
    assert not any("never updated" in message for message in objective.messages)


def test_running_statistics_that_were_never_updated_are_no_prior(smooth_target: Callable[..., Any]) -> None:
    target, truth = smooth_target()
    for layer in target.model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    objective = Objective(_captured_again(target), ObjectiveConfig())
    assert "batch_norm" not in objective.terms(truth)
    assert any("never updated" in message for message in objective.messages)


def test_an_objective_that_nothing_can_be_scored_by_is_refused(smooth_target: Callable[..., Any]) -> None:
    target, _ = smooth_target()
    config = ObjectiveConfig(gradient_weight=0, total_variation_weight=0, l2_weight=0, batch_norm_weight=0.1)
    assert set(Objective(target, config).terms(torch.zeros(2, 1, 5, 5))) == {"batch_norm", "total"}
    for layer in target.model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    with pytest.raises(Refusal, match="no term"):
        Objective(_captured_again(target), config)


class _TwoHeads(nn.Module):
    """A head that the loss does not reach: its gradient is zero, as the client captures it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.side = nn.Conv2d(1, 4, 3), nn.Linear(36, 5), nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).flatten(1))


@pytest.mark.parametrize("anchored", [False, True])
def test_parameters_that_the_loss_does_not_reach(anchored: bool) -> None:
    model, images, labels = _TwoHeads(), torch.rand(2, 1, 5, 5), torch.tensor([3, 1])
    update = capture_gradient(model, images, labels, normalisation=Normalisation((0.5,), (0.5,)))
    target = Target(update, model, labels)
    objective = Objective(_with_anchor(target) if anchored else target, ObjectiveConfig())
    truth = update.normalisation.apply(images)
    assert float(objective.terms(truth)["gradient"].detach()) < 1e-5
    assert objective.gradient_loss(truth) < 1e-5
    assert objective.gradient_loss(truth + 0.5) > 0.01


@pytest.mark.parametrize("anchored", [False, True])
def test_frozen_parameters_are_not_asked_for(anchored: bool) -> None:
    model, images, labels = _TwoHeads(), torch.rand(2, 1, 5, 5), torch.tensor([3, 1])
    model.get_parameter("conv.bias").requires_grad_(False)
    model.head.bias.requires_grad_(False)
    update = capture_gradient(model, images, labels, normalisation=Normalisation((0.5,), (0.5,)))
    assert "conv.bias" not in update.gradients
    target = Target(update, model, labels)
    objective = Objective(_with_anchor(target) if anchored else target, ObjectiveConfig())
    assert objective.gradient_loss(update.normalisation.apply(images)) < 1e-5


@pytest.mark.parametrize("name", list(_EVERYTHING))
@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_weights_outside_their_range_are_refused(name: str, value: float) -> None:
    wrong: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=name):
        ObjectiveConfig(**wrong)


@pytest.mark.parametrize("name", ["form", "gradient_loss", "total_variation"])
def test_plain_words_mean_the_same_as_members(name: str) -> None:
    kind = {"form": Form, "gradient_loss": GradientLoss, "total_variation": TotalVariation}[name]
    for member in kind:
        plain: dict[str, Any] = {name: str(member.value)}
        assert getattr(ObjectiveConfig(**plain), name) is member
    unknown: dict[str, Any] = {name: "huh"}
    with pytest.raises(ValueError, match=rf"objective\.{name}=huh: give one of {next(iter(kind))}"):
        ObjectiveConfig(**unknown)


def test_the_paper_s_form_is_another_number(smooth_target: Callable[..., Any]) -> None:
    target, truth = smooth_target()
    values = {}
    for form in ("paper", "scale_free"):
        terms = Objective(target, ObjectiveConfig(form=Form(form), **_EVERYTHING)).terms(truth + 0.3, truth)
        values[form] = {name: float(terms[name].detach()) for name in ("l2", "batch_norm", "group")}
    assert values["paper"]["l2"] == pytest.approx(float((truth + 0.3).flatten(1).norm(dim=1).mean()))
    assert values["scale_free"]["l2"] == pytest.approx(float((truth + 0.3).square().mean()))
    assert values["paper"]["group"] == pytest.approx(0.3 * 25**0.5, rel=1e-6)
    assert values["scale_free"]["group"] == pytest.approx(0.3, rel=1e-6)
    assert values["paper"]["batch_norm"] > 2 * values["scale_free"]["batch_norm"]


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("gradient_weight", [1.0, 0.0])
def test_evidence_is_least_at_the_true_images(
    smooth_target: Callable[..., Any], anchored: bool, gradient_weight: float
) -> None:
    target, truth = smooth_target("train_shared")
    target = _with_anchor(target) if anchored else target
    config = ObjectiveConfig(gradient_weight=gradient_weight, total_variation_weight=0, batch_norm_weight=1.0)
    objective = Objective(target, config)
    exact = objective.evidence(truth)
    assert exact < 1e-5
    assert objective.evidence(truth + 0.1 * torch.randn_like(truth)) > 0.01
    assert objective.evidence(truth.float()) == pytest.approx(exact, abs=1e-5)

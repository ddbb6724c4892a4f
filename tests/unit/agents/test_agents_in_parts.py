"""A batch in parts: terms, derivative and gradient loss as of the whole batch, whatever is matched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.agents import Agent, AgentsConfig, Objective, ObjectiveConfig
from gradinversion.agents.in_parts import Pieces, in_parts, judged_at_once
from gradinversion.capture import Normalisation, capture_gradient
from gradinversion.peeling import peel
from gradinversion.refusal import ConfigError
from gradinversion.target import Target
from torch import Tensor, nn

BATCH = 5
ALL = ObjectiveConfig(batch_norm_weight=0.1, l2_weight=0.01)


def both(target: Target, at_once: int, config: ObjectiveConfig = ALL) -> tuple[Objective, Objective]:
    return Objective(target, config), Objective(target, config, images_at_once=at_once)


def judged(objective: Objective, images: Tensor) -> tuple[dict[str, float], Tensor, float]:
    entered = images.clone().requires_grad_()
    terms = objective.terms(entered, consensus=images + 0.1)
    derivative = torch.autograd.grad(terms["total"], entered)[0]
    return {name: float(term.detach()) for name, term in terms.items()}, derivative, objective.gradient_loss(images)


def require_equal(whole: Objective, parted: Objective, images: Tensor) -> None:
    terms, derivative, loss = judged(parted, images)
    expected = judged(whole, images)
    assert terms == pytest.approx(expected[0], rel=1e-9)
    torch.testing.assert_close(derivative, expected[1], rtol=1e-9, atol=1e-12)
    assert loss == pytest.approx(expected[2], rel=1e-9)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_parts_come_to_what_the_whole_comes_to(smooth_target: Callable[..., Any], at_once: int) -> None:
    target, truth = smooth_target(batch=BATCH)
    whole, parted = both(target, at_once)
    require_equal(whole, parted, truth + 0.3)


def test_behind_an_anchor_too(smooth_target: Callable[..., Any]) -> None:
    target, truth = smooth_target(batch=3)
    anchor = peel(target.update, target.model, target.labels).anchor
    assert anchor is not None
    require_equal(*both(replace(target, anchor=anchor), 2), truth + 0.3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_whatever_the_client_s_loss_is_over_the_batch(reduction: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(27, 4)).double()
    images, labels = torch.rand(BATCH, 1, 5, 5, dtype=torch.float64), torch.arange(BATCH) % 4
    normalisation = Normalisation(mean=(0.5,), std=(0.25,))
    loss = nn.CrossEntropyLoss(reduction=reduction, label_smoothing=0.1)
    update = capture_gradient(model, images, labels, loss=loss, normalisation=normalisation)
    config = replace(ALL, batch_norm_weight=0.0)
    whole, parted = both(Target(update, model, labels), 2, config)
    require_equal(whole, parted, normalisation.apply(images) + 0.2)
    assert parted.gradient_loss(normalisation.apply(images)) < 1e-9


def test_statistics_alone(smooth_target: Callable[..., Any]) -> None:
    target, truth = smooth_target(batch=BATCH)
    require_equal(*both(target, 2, replace(ALL, gradient_weight=0.0)), truth + 0.3)


def test_an_agent_descends_as_with_the_whole_batch(smooth_target: Callable[..., Any]) -> None:
    target, _ = smooth_target(batch=BATCH)
    config = AgentsConfig(iterations=5, warmup=1)
    whole = Agent(target, ALL, config, 0)
    parted = Agent(target, ALL, replace(config, images_at_once=2), 0)
    whole.run(5)
    parted.run(5)
    torch.testing.assert_close(parted.images, whole.images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["train_shared", "train_private"])
def test_images_that_depend_on_each_other_stay_together(smooth_target: Callable[..., Any], mode: str) -> None:
    target, truth = smooth_target(mode, batch=BATCH)
    whole, parted = both(target, 2)
    assert not any("images_at_once" in text for text in whole.messages)
    assert sum("images_at_once=2 has no effect: batch norm" in text for text in parted.messages) == 1
    require_equal(whole, parted, truth + 0.3)


class Squeezed(nn.Module):
    """Takes every batch but those of one image."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.mean(dim=(2, 3), keepdim=True).squeeze())


class Coupled(nn.Module):
    """Each image is held against the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        values = images.mean(dim=(2, 3))
        return self.fc(values - values.mean(dim=0))


@pytest.mark.parametrize("build", [Squeezed, Coupled])
def test_a_model_that_does_not_take_parts_is_given_the_whole(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, images, labels = build(), torch.rand(3, 3, 8, 8), torch.arange(3)
    update = capture_gradient(model, images, labels)
    whole, parted = both(Target(update, model, labels), 2, replace(ALL, batch_norm_weight=0.0))
    assert any("images_at_once=2 has no effect: the model does not make" in text for text in parted.messages)
    batch = update.normalisation.apply(images) + 0.1
    assert parted.gradient_loss(batch) == pytest.approx(whole.gradient_loss(batch), rel=1e-6)


def test_the_graph_of_one_part_is_held_at_a_time() -> None:
    at_once: list[int] = []

    def run(part: Tensor, rows: slice, create_graph: bool) -> Pieces:
        at_once.append(len(part))
        return Pieces((part.square().sum(),), (2 * part,))

    images = torch.arange(7.0)[:, None, None, None].requires_grad_()
    pieces = in_parts(images, 3, run)
    assert float(pieces.summed[0].detach()) == 91
    assert pieces.joined[0].detach().flatten().tolist() == [0, 2, 4, 6, 8, 10, 12]
    found = torch.autograd.grad(pieces.summed[0] + pieces.joined[0].sum(), images)[0]
    assert found.flatten().tolist() == [2.0 * value + 2 for value in range(7)]
    assert at_once == [3, 3, 1] * 2


def test_a_number_of_images_is_not_negative() -> None:
    with pytest.raises(ConfigError, match=r"agents\.images_at_once=-1: give a number that is not negative"):
        AgentsConfig(images_at_once=-1)


@pytest.mark.parametrize(
    ("side", "given", "expected"), [(32, 0, 98), (224, 0, 2), (448, 0, 1), (224, 1, 1), (224, 8, 2), (32, 4, 4)]
)
def test_large_images_are_judged_few_at_a_time(side: int, given: int, expected: int) -> None:
    assert judged_at_once((3, side, side), given) == expected

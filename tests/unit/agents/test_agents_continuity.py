"""Behind an anchor: gradients that jump weigh less, and total variation fades where the images are determined."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.agents import AgentsConfig, Inverter, Objective, ObjectiveConfig
from gradinversion.capture import capture_gradient, load_images
from gradinversion.capture.models import convnet
from gradinversion.peeling import peel
from gradinversion.target import Target
from torch import Tensor

_JUMPING, _CONTINUOUS = {"0", "1"}, {"3", "4"}


def _after(descends: Inverter, *run: Any) -> Tensor:
    """The images after a run."""
    descends.run(*run)
    return descends.images


def _target(count: int) -> tuple[Target, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = convnet().eval()
    images, labels = load_images("photos", count, 32)[0], torch.arange(count)
    update = capture_gradient(model, images, labels)
    anchor = peel(update, model, labels).anchor
    assert anchor is not None
    return Target(update, model, labels, anchor), update.normalisation.apply(images)


@pytest.fixture(scope="module")
def anchored() -> tuple[Target, Tensor]:
    target, truth = _target(4)
    assert target.anchor is not None
    assert target.anchor.module == "5"
    return target, truth


def _gradient(target: Target, images: Tensor, **options: Any) -> float:
    terms = Objective(target, ObjectiveConfig(**options)).terms(images.clone().requires_grad_())
    return float(terms["gradient"].detach())


def test_layers_behind_the_last_relu_before_the_anchor_are_continuous(anchored: tuple[Target, Tensor]) -> None:
    assert anchored[0].anchor is not None
    assert {name.split(".")[0] for name in anchored[0].anchor.continuous} == _CONTINUOUS


def test_the_jump_weight_is_that_of_the_others(anchored: tuple[Target, Tensor]) -> None:
    target, truth = anchored
    images = truth + 0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    found = {weight: _gradient(target, images, jump_weight=weight) for weight in (0.0, 0.1, 1.0)}
    assert target.anchor is not None
    sizes = {name: float(g.norm()) for name, g in target.update.gradients.items()}
    smooth = sum(size for name, size in sizes.items() if name.split(".")[0] in _CONTINUOUS)
    rough = sum(size for name, size in sizes.items() if name.split(".")[0] in _JUMPING)
    # Each value is a weighted mean of the two kinds' relative distances.
    rest = (found[1.0] * (smooth + rough) - found[0.0] * smooth) / rough
    expected = (found[0.0] * smooth + 0.1 * rest * rough) / (smooth + 0.1 * rough)
    assert found[0.1] == pytest.approx(expected, rel=1e-4)


def test_without_continuous_gradients_it_changes_nothing(anchored: tuple[Target, Tensor]) -> None:
    target, truth = anchored
    assert target.anchor is not None
    bare = replace(target, anchor=replace(target.anchor, continuous=()))
    images = truth + 0.1
    assert _gradient(bare, images, jump_weight=0.1) == _gradient(bare, images, jump_weight=1.0)
    assert _gradient(replace(target, anchor=None), images, jump_weight=0.1) == _gradient(
        replace(target, anchor=None), images, jump_weight=1.0
    )


def _variation_share(target: Target, images: Tensor, progress: float) -> float:
    objective = Objective(target, ObjectiveConfig(gradient_weight=1.0, total_variation_weight=0.2))
    terms = objective.terms(images.clone().requires_grad_(), progress=progress)
    value = {name: float(term.detach()) for name, term in terms.items()}
    return (value["total"] - value["gradient"] - 0.3 * value["activation"]) / (0.2 * value["total_variation"])


@pytest.mark.parametrize(("progress", "share"), [(0.0, 1.0), (0.5, 1.0), (0.75, 0.525), (1.0, 0.05)])
def test_total_variation_fades_over_the_second_half(
    anchored: tuple[Target, Tensor], progress: float, share: float
) -> None:
    target, truth = anchored
    assert _variation_share(target, truth + 0.1, progress) == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("doubt", ["error", "equations"])
def test_it_does_not_where_something_is_left_open(anchored: tuple[Target, Tensor], doubt: str) -> None:
    target, truth = anchored
    assert target.anchor is not None
    anchor = replace(target.anchor, error=0.02) if doubt == "error" else replace(target.anchor, continuous=())
    assert _variation_share(replace(target, anchor=anchor), truth + 0.1, 1.0) == pytest.approx(1.0, rel=1e-3)


def test_a_descent_of_one_second_finds_the_images(anchored: tuple[Target, Tensor]) -> None:
    target, truth = anchored
    config = AgentsConfig(iterations=150)
    errors = {}
    for weight in (1.0, 0.1):
        inverter = Inverter(Objective(target, ObjectiveConfig(jump_weight=weight)), config, seed=0)
        found = _after(inverter, config.iterations, None)
        errors[weight] = float((found - truth).square().mean().sqrt())
    assert errors[0.1] < 0.5 * errors[1.0]
    assert errors[0.1] < 0.1

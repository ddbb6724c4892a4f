"""At the true images the match is exact to rounding in the client's own batch-norm mode, and in no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from gradinversion.agents import Objective, ObjectiveConfig
from gradinversion.capture import IMAGENET, BatchNormMode, capture_gradient, load_model, told
from gradinversion.peeling import peel
from gradinversion.target import Target
from torch import Tensor

_MODES = list(BatchNormMode)
_SETTLED = ObjectiveConfig(group_weight=0, total_variation_weight=0)

Case = tuple[Target, Tensor]


def _case(model_name: str, mode: BatchNormMode) -> Case:
    model = load_model(model_name, classes=10, image_size=32, seed=0)
    model.train()
    with torch.no_grad():  # running statistics that are not those of the private batch
        model(torch.randn(8, 3, 32, 32))
    model.eval()
    labels = torch.tensor([0, 4, 7, 2] if model_name == "convnet" else [0, 4, 7])
    images = torch.rand(len(labels), 3, 32, 32)
    update = capture_gradient(model, images, labels, batch_norm=mode)
    return Target(update, model, labels), IMAGENET.apply(images)


def _anchored(target: Target) -> Target:
    anchor = peel(target.update, target.model, target.labels).anchor
    assert anchor is not None
    return replace(target, anchor=anchor)


@pytest.fixture(scope="module")
def cases() -> Callable[[str, BatchNormMode, bool], Case]:
    made: dict[tuple[str, BatchNormMode, bool], Case] = {}

    def get(model_name: str, mode: BatchNormMode, anchored: bool) -> Case:
        plain = made.setdefault((model_name, mode, False), _case(model_name, mode))
        if not anchored:
            return plain
        key = (model_name, mode, True)
        if key not in made:
            made[key] = (_anchored(plain[0]), plain[1])
        return made[key]

    return get


@pytest.mark.parametrize("model", ["convnet", "resnet18"])
@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("anchored", [False, True])
def test_the_match_is_exact_at_the_true_images(
    cases: Callable[..., Case], model: str, mode: BatchNormMode, anchored: bool
) -> None:
    target, truth = cases(model, mode, anchored)
    objective = Objective(target, _SETTLED)
    buffers = {name: value.clone() for name, value in objective._model.named_buffers()}
    terms = objective.terms(truth.clone().requires_grad_())
    assert float(terms["gradient"].detach()) < 1e-4
    if anchored:
        assert float(terms["activation"].detach()) < 1e-4
    if mode is BatchNormMode.TRAIN_SHARED:
        # The shared statistics are the batch's own.
        assert float(terms["batch_norm"].detach()) < 1e-3
    else:
        assert float(terms["batch_norm"].detach()) > 0.01
    assert objective.gradient_loss(truth) < 1e-4
    assert objective.gradient_loss(truth + 0.1 * torch.randn_like(truth)) > 1e-2
    assert all(bool((value == buffers[name]).all()) for name, value in objective._model.named_buffers())
    assert not any(module.training for module in objective._model.modules())


@pytest.mark.parametrize("model", ["convnet", "resnet18"])
@pytest.mark.parametrize(
    ("mode", "wrong"),
    [
        (BatchNormMode.EVAL, BatchNormMode.TRAIN_PRIVATE),
        (BatchNormMode.TRAIN_PRIVATE, BatchNormMode.EVAL),
        (BatchNormMode.TRAIN_SHARED, BatchNormMode.EVAL),
    ],
)
def test_in_the_wrong_mode_it_is_far_from_zero(
    cases: Callable[..., Case], model: str, mode: BatchNormMode, wrong: BatchNormMode
) -> None:
    target, truth = cases(model, mode, False)
    mistaken = replace(
        target, update=replace(target.update, facts=target.update.facts.stating(batch_norm=told(wrong)), buffers=None)
    )
    objective = Objective(mistaken, _SETTLED)
    assert float(objective.terms(truth)["gradient"].detach()) > 0.1
    assert objective.gradient_loss(truth) > 0.1


@pytest.mark.parametrize("mode", _MODES)
def test_running_statistics_are_left_alone_when_a_candidate_is_not_finite(
    cases: Callable[..., Case], mode: BatchNormMode
) -> None:
    target, truth = cases("convnet", mode, False)
    objective = Objective(target, _SETTLED)
    before = {name: value.clone() for name, value in objective._model.named_buffers()}
    assert not bool(torch.isfinite(objective.terms(truth * float("nan"))["total"].detach()))
    assert all(bool((value == before[name]).all()) for name, value in objective._model.named_buffers())
    assert objective.gradient_loss(truth) < 1e-4

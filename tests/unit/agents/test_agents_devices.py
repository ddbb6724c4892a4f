"""Where an objective computes: all that it holds is on its device. The meta device stands for one that is not here: it
computes shapes alone, and refuses tensors of another device as a GPU does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.agents import GradientLoss, Objective, ObjectiveConfig
from gradinversion.agents.objective_config import Form
from gradinversion.peeling import peel
from gradinversion.target import Target

BATCH = 3
ALL = ObjectiveConfig(batch_norm_weight=0.1, l2_weight=0.01)


def require_all_there(target: Target, config: ObjectiveConfig = ALL, at_once: int = 0) -> None:
    objective = Objective(target, config, "meta", at_once)
    images = torch.empty(BATCH, 1, 5, 5, dtype=torch.float64, device="meta", requires_grad=True)
    terms = objective.terms(images, torch.empty_like(images))
    assert {term.device.type for term in terms.values()} == {"meta"}
    (derivative,) = torch.autograd.grad(terms["total"], images)
    assert derivative.device.type == "meta"
    assert derivative.shape == images.shape


@pytest.mark.parametrize("loss", list(GradientLoss))
def test_plain(smooth_target: Callable[..., Any], loss: GradientLoss) -> None:
    require_all_there(smooth_target(batch=BATCH)[0], replace(ALL, gradient_loss=loss))


@pytest.mark.parametrize("mode", ["train_shared", "train_private"])
def test_in_train_mode(smooth_target: Callable[..., Any], mode: str) -> None:
    require_all_there(smooth_target(mode, batch=BATCH)[0])


@pytest.mark.parametrize("at_once", [1, 2])
def test_in_parts(smooth_target: Callable[..., Any], at_once: int) -> None:
    require_all_there(smooth_target(batch=BATCH)[0], at_once=at_once)


@pytest.mark.parametrize("at_once", [0, 2])
def test_behind_an_anchor(smooth_target: Callable[..., Any], at_once: int) -> None:
    target, _ = smooth_target(batch=BATCH)
    anchor = peel(target.update, target.model, target.labels).anchor
    assert anchor is not None
    require_all_there(replace(target, anchor=anchor), at_once=at_once)


def test_the_paper_s_form(smooth_target: Callable[..., Any]) -> None:
    require_all_there(smooth_target(batch=BATCH)[0], replace(ALL, form=Form.PAPER))

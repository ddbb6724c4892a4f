"""Labels that are optimised together with the pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.agents import Agent, AgentsConfig, Objective, ObjectiveConfig, Outcome
from gradinversion.agents.parametrisation import PixelsAndLabels, parametrisation_of

_OBJECTIVE = ObjectiveConfig(
    gradient_loss="squared_l2",  # type: ignore[arg-type]
    total_variation_weight=0.0,
    batch_norm_weight=0.0,
)
_LBFGS = AgentsConfig(iterations=150, learning_rate=1.0, optimiser="lbfgs", sign=False, box=False)  # type: ignore[arg-type]
_ADAM = AgentsConfig(iterations=150, warmup=0, sign=False, noise=0.1)


@pytest.fixture
def unknown(smooth_target: Callable[..., Any]) -> Any:
    """A target whose labels, 0 and 1 of five classes, nobody knows."""
    target, truth = smooth_target(dtype=torch.float32)
    return replace(target, labels=torch.zeros(2, dtype=torch.int64), joint_labels=True), truth


def test_the_labels_are_found_with_the_images(unknown: Any) -> None:
    target, _ = unknown
    agent = Agent(target, _OBJECTIVE, _LBFGS, seed=0)
    before = agent.account().labels
    account = agent.run(150)
    assert account.outcome is Outcome.FINISHED
    assert account.labels is not None
    assert before is not None
    assert agent.images.shape == (2, 1, 5, 5)
    torch.testing.assert_close(account.labels.sum(1), torch.ones(2))
    assert sorted(account.labels.argmax(1).tolist()) == [0, 1]
    assert sorted(before.argmax(1).tolist()) != [0, 1]
    assert account.trace[-1]["gradient"] < 0.02 * account.trace[0]["gradient"]


def test_the_right_images_with_the_right_labels_have_the_captured_gradient(unknown: Any) -> None:
    target, truth = unknown
    objective = Objective(target, _OBJECTIVE)
    assert objective.classes == 5
    right, wrong = (torch.eye(5)[torch.tensor(labels)] for labels in ([0, 1], [1, 0]))
    images = truth.float().requires_grad_()
    assert float(objective.terms(images, None, right)["gradient"].detach()) < 1e-9
    assert float(objective.terms(images, None, wrong)["gradient"].detach()) > 1e-3


@pytest.mark.parametrize("config", [_LBFGS, _ADAM], ids=["lbfgs", "adam"])
def test_a_restored_agent_goes_on_bit_for_bit(unknown: Any, config: AgentsConfig) -> None:
    target, _ = unknown
    whole, before, after = (Agent(target, _OBJECTIVE, config, seed=2) for _ in range(3))
    whole.run(15)
    last = whole.run(30)
    before.run(15)
    after.restore(before.state())
    account = after.run(30)
    assert torch.equal(after.images, whole.images)
    assert last.labels is not None
    assert account.labels is not None
    assert torch.equal(account.labels, last.labels)


def test_the_box_holds_the_pixels_and_not_the_labels(unknown: Any) -> None:
    target, _ = unknown
    config = AgentsConfig(iterations=5, warmup=0, learning_rate=3.0, sign=True, box=True)
    agent = Agent(target, _OBJECTIVE, config, seed=2)
    agent.run(5)
    low, high = target.update.normalisation.bounds()
    assert bool((agent.images >= low - 1e-6).all())
    assert bool((agent.images <= high + 1e-6).all())
    logits = agent.state()["images_and_labels"][:, 25:]
    assert float(logits.abs().max()) > float(high.max())


def test_near_a_start_labels_are_anyone_s(unknown: Any) -> None:
    target, truth = unknown
    agent = Agent(target, _OBJECTIVE, _ADAM, seed=2)
    agent.join(5, truth.float())
    assert float((agent.images - truth).abs().mean()) < 0.2
    assert agent.account().labels is not None


def test_known_labels_are_not_among_the_variables(smooth_target: Callable[..., Any], unknown: Any) -> None:
    known, _ = smooth_target(dtype=torch.float32)
    assert Agent(known, _OBJECTIVE, _ADAM, seed=2).run(2).labels is None
    assert isinstance(parametrisation_of(Objective(unknown[0], _OBJECTIVE)), PixelsAndLabels)

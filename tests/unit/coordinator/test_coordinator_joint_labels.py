"""Runs that find the labels together with the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import AgentsConfig, ObjectiveConfig, Outcome, Standing
from gradinversion.capture import CapturedUpdate, capture_gradient
from gradinversion.coordinator import AttackConfig, Storage, read_result
from gradinversion.coordinator.finishing import with_found_labels
from gradinversion.peeling import PeelingConfig
from gradinversion.target import Target
from gradinversion.target.belief import Belief
from gradinversion.target.labels import unread_labels
from gradinversion.target.preparation import Preparation
from torch import nn


@pytest.fixture
def config(config: AttackConfig) -> AttackConfig:
    return replace(
        config,
        labels="joint",
        peeling=PeelingConfig(enabled=False),
        objective=ObjectiveConfig(total_variation_weight=0.0),
        agents=AgentsConfig(count=1, iterations=40, warmup=0, patience=0.0),
    )


class _Killed(KeyboardInterrupt):
    pass


def kill() -> None:
    raise _Killed


def test_the_result_has_the_labels_of_its_images(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run(out=tmp_path)()
    (candidate,) = result.candidates
    assert candidate.labels is not None
    assert candidate.labels.shape == (3, 4)
    assert torch.equal(result.labels.labels, candidate.labels.argmax(1))
    assert torch.equal(result.labels.confidence, candidate.labels.amax(1))
    assert result.labels.method == "joint"
    assert result.gradient_loss < 1.0
    kept = read_result(Storage(tmp_path))
    assert kept is not None
    assert torch.equal(kept.labels.labels, result.labels.labels)


def test_a_resumed_run_gives_the_same_images_and_labels(run: Callable[..., Any], tmp_path: Path) -> None:
    whole = run()()
    with pytest.raises(_Killed):
        run(out=tmp_path, before={2: kill})()
    again = run(out=tmp_path, resume=True)()
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.labels.labels, whole.labels.labels)


@pytest.mark.parametrize("change", [{"agents": AgentsConfig(count=2)}, {"peeling": PeelingConfig()}])
def test_several_seeds_or_peeling_are_refused(config: AttackConfig, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"labels=joint .* give agents\.count=1 peeling\.enabled=false"):
        replace(config, **change)


def test_labels_of_several_seeds_are_the_likeliest_of_their_images_in_one_order() -> None:
    """As where the final layer is frozen: each seed has the images, and their labels, in an order of its own."""
    first = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7]])
    second = torch.tensor([[0.0, 0.1, 0.9], [0.1, 0.9, 0.0]])
    seeds = [Standing(k, 0, 0, {}, Outcome.FINISHED, labels=own) for k, own in enumerate((first, second))]
    target = Target(*_update(), labels=torch.zeros(2, dtype=torch.long), joint_labels=True)
    prepared = Preparation(target, unread_labels(2), (), Belief(target.update.facts))
    found = with_found_labels(prepared, seeds, torch.tensor([[0, 1], [1, 0]]))
    assert found.labels.labels.tolist() == [1, 2]
    assert found.labels.confidence.tolist() == pytest.approx([0.65, 0.8])
    assert found.target.labels.tolist() == [1, 2]
    assert not found.target.joint_labels
    # A seed that explains the update while the others do not is not outvoted.
    alone = [replace(seed, losses={"gradient": loss}) for seed, loss in zip(seeds, (1e-6, 1.0), strict=True)]
    assert with_found_labels(prepared, alone, torch.tensor([[0, 1], [1, 0]])).labels.labels.tolist() == [0, 2]
    unlabelled = [replace(seed, labels=None) for seed in seeds]
    assert with_found_labels(prepared, unlabelled, torch.tensor([[0, 1], [1, 0]])) is prepared


def _update() -> tuple[CapturedUpdate, nn.Module]:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    return capture_gradient(model, torch.rand(2, 3, 4, 4), torch.tensor([1, 2])), model

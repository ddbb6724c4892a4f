"""The attack on a real local Ray."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradinversion.agents import AgentsConfig, Outcome
from gradinversion.capture import CapturedUpdate, LabelError
from gradinversion.cluster import reconstruct
from gradinversion.coordinator import AttackConfig, CoordinatorConfig, Mode, Status
from torch import nn

CONFIG = AttackConfig(
    labels="0,3",
    agents=AgentsConfig(count=3, iterations=60, warmup=4),
    coordinator=CoordinatorConfig(period=20, start=0.3),
)


def test_sync_runs_are_bit_equal(update: CapturedUpdate, model: nn.Module) -> None:
    seen: list[Status] = []
    first = reconstruct(update, model, CONFIG, watch=seen.append)
    second = reconstruct(update, model, CONFIG)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.candidate_images, second.candidate_images)
    assert first.outcome is Outcome.FINISHED
    assert [candidate.seed for candidate in first.candidates] == [0, 1, 2]
    assert seen[-1].round == 3
    assert [seed.seed for seed in seen[-1].seeds] == [0, 1, 2]


def test_the_group_term_changes_the_seeds(update: CapturedUpdate, model: nn.Module) -> None:
    alone = replace(CONFIG, objective=replace(CONFIG.objective, group_weight=0.0))
    strong = replace(CONFIG, objective=replace(CONFIG.objective, group_weight=1.0))
    spread = [reconstruct(update, model, config).candidate_images.std(dim=0).mean() for config in (alone, strong)]
    assert float(spread[1]) < float(spread[0])


def test_async_agents_all_reach_their_last_step(update: CapturedUpdate, model: nn.Module) -> None:
    config = replace(CONFIG, coordinator=replace(CONFIG.coordinator, mode=Mode.ASYNC))
    result = reconstruct(update, model, config)
    assert result.outcome is Outcome.FINISHED
    assert [candidate.step for candidate in result.candidates] == [60, 60, 60]
    assert result.registration[-1]["seeds"] == 3
    start = [row["gradient"] for row in result.history if row["step"] == 1]
    assert result.gradient_loss < min(start)


def test_an_error_in_the_coordinator_arrives_as_itself(update: CapturedUpdate, model: nn.Module) -> None:
    with pytest.raises(LabelError, match="3 labels were given for 2 images"):
        reconstruct(update, model, replace(CONFIG, labels="0,1,2"))

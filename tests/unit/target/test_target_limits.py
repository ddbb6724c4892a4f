"""What the attack cannot retrace is a limit, whatever the facts say; what is merely different is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gradinversion.agents import Objective, ObjectiveConfig
from gradinversion.capture import (
    BatchNormMode,
    ClientConfig,
    Defence,
    Sampling,
    assumed,
    load_model,
    simulate_client,
    told,
)
from gradinversion.capture.decisive import decisive_facts, draws_in_training
from gradinversion.coordinator import AttackConfig
from gradinversion.target import Target, weigh_evidence
from gradinversion.target.preparation import prepare
from gradinversion.target.step_counter import check_step_counter
from torch import Tensor, nn


@pytest.mark.parametrize(
    ("settings", "labels", "limited"),
    [
        ({"labels": "7,2,5,0", "local_epochs": 2, "local_batch_size": 2}, "auto", True),
        ({"labels": "7,2,5,0", "local_epochs": 2, "local_batch_size": 2}, "7,2,5,0", False),
        ({"labels": "7,2,5,0", "local_epochs": 2, "local_batch_size": 2, "shuffled": True}, "7,2,5,0", True),
        ({"labels": "7,2,5,0", "local_epochs": 2}, "auto", False),
        ({}, "auto", False),
    ],
)
def test_an_order_over_local_steps_that_is_guessed_is_a_limit(
    settings: dict[str, Any], labels: str, limited: bool
) -> None:
    update, model, _ = simulate_client(ClientConfig(image_size=16, learning_rate=0.1, **settings), 0)
    limits = prepare(update, model, AttackConfig(labels=labels).request).limits
    assert bool(limits) == limited
    assert all("local steps is not known" in limit for limit in limits)


@pytest.mark.parametrize(
    ("facts", "limited"),
    [
        ({"clients": told(3)}, False),
        ({"clients": told(3), "defences": told((Defence("clip", 1e6),))}, True),
        ({"clients": told(1), "defences": told((Defence("clip", 1e6),))}, False),
        ({"clients": told(3), "batch_norm": told(BatchNormMode.TRAIN_PRIVATE)}, True),
    ],
)
def test_clients_whose_images_are_no_one_batch_are_a_limit(facts: dict[str, Any], limited: bool) -> None:
    update, model, _ = simulate_client(ClientConfig(image_size=16), 0)
    update = update.stating(**facts)
    assert bool(weigh_evidence(update, model).limits) == limited
    assert ("clients" in decisive_facts(update, model)) == (limited or "defences" in facts)


class Rare(nn.Module):
    """Stochastic depth that nearly never drops one of a few images."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance, self.layer = chance, nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x.flatten(1))
        if self.training and self.chance:
            kept = (1 - self.chance + torch.rand(len(x), 1)).floor()
            result = result / (1 - self.chance) * kept
        return result


def test_chance_is_seen_that_changes_nothing_on_the_probe() -> None:
    assert all(draws_in_training(Rare(chance), (3, 4, 4)) for chance in (0.001, 0.02, 0.5))
    assert not draws_in_training(Rare(0.0), (3, 4, 4))
    assert not draws_in_training(load_model("resnet18", 10, 32), (3, 32, 32))


def test_a_told_clip_leaves_the_scale_free_where_nothing_else_can_be_read() -> None:
    update, model, private = simulate_client(ClientConfig(image_size=16), 0)
    norm = float(torch.cat([gradient.flatten() for gradient in update.gradients.values()]).norm())
    settings = ClientConfig(image_size=16, defence=f"clip:{norm / 5}")
    clipped, model, private = simulate_client(settings, 0)
    target = Target(clipped, model, private.labels, joint_labels=True)
    images = clipped.normalisation.apply(private.images).requires_grad_()
    certain = torch.nn.functional.one_hot(private.labels, 10).float()
    terms = Objective(target, ObjectiveConfig()).terms(images, labels=certain)
    assert float(terms["gradient"].detach()) < 1e-3


def test_a_bound_on_a_sum_that_was_divided_by_less_is_no_contradiction() -> None:
    update, model, _ = simulate_client(ClientConfig(image_size=16), 0)
    norm = float(torch.cat([gradient.flatten() for gradient in update.gradients.values()]).norm())
    private = (Defence("dp_sgd", 0.0, (0.6 * norm,)),)
    twice = update.stating(defences=told(private), sampling=told(Sampling(True, 2.0)))
    assert "defences" not in weigh_evidence(twice, model).contradictions
    once = update.stating(defences=told(private))
    assert "defences" in weigh_evidence(once, model).contradictions


def test_a_counter_that_went_backwards_counts_nothing() -> None:
    update, model, _ = simulate_client(ClientConfig(image_size=16, bn="train_shared"), 0)
    assert not check_step_counter(update, model).contradictions
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(500)
    assert not check_step_counter(update.stating(image_count=assumed(4)), model).contradictions

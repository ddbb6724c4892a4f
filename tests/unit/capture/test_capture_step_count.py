"""Local steps by the counters of batch norm: what follows from them is read, and nothing that was told is changed."""

from __future__ import annotations

import copy

import pytest
import torch
from gradinversion.capture import (
    LocalFacts,
    LocalTraining,
    Provenance,
    assumed,
    capture_weight_delta,
    told,
    train_locally,
)
from gradinversion.capture.step_count import counted_steps, with_counted_steps
from torch import nn

READ, TOLD, ASSUMED = Provenance.READ, Provenance.TOLD, Provenance.ASSUMED


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten()
    ).append(nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("told_facts", "images", "steps", "epochs", "batch_size"),
    [
        # Of what is told with the steps, the other one follows.
        ({"batch_size": 4}, 8, 6, (3, READ), (4, TOLD)),
        ({"batch_size": None}, 8, 3, (3, READ), (None, TOLD)),
        ({"batch_size": 5}, 8, 6, (3, READ), (5, TOLD)),
        ({"epochs": 3}, 8, 3, (3, TOLD), (None, READ)),
        ({"epochs": 3}, 8, 24, (3, TOLD), (1, READ)),
        ({"epochs": 3}, 3, 6, (3, TOLD), (2, READ)),
        # Eight images make two batches at a size of four to seven.
        ({"epochs": 3}, 8, 6, (3, TOLD), (4, ASSUMED)),
        # No batch size makes five batches of eight images, and no number of epochs three steps of two batches.
        ({"epochs": 1}, 8, 5, (1, TOLD), (None, ASSUMED)),
        ({"batch_size": 4}, 8, 3, (1, ASSUMED), (4, TOLD)),
        ({"epochs": 2}, 8, 3, (2, TOLD), (None, ASSUMED)),
        # One step is one batch of all.
        ({}, 8, 1, (1, READ), (None, READ)),
        ({}, 8, 4, (4, ASSUMED), (None, ASSUMED)),
        ({"epochs": 2, "batch_size": 4}, 8, 9, (2, TOLD), (4, TOLD)),
        ({}, 8, None, (1, ASSUMED), (None, ASSUMED)),
        ({}, 8, 0, (1, ASSUMED), (None, ASSUMED)),
    ],
)
def test_what_follows_is_read(
    told_facts: dict[str, int | None],
    images: int,
    steps: int | None,
    epochs: tuple[int, Provenance],
    batch_size: tuple[int | None, Provenance],
) -> None:
    local = LocalFacts(**{name: told(value) for name, value in told_facts.items()})  # type: ignore[arg-type]
    found = with_counted_steps(local, images, steps)
    assert (found.epochs.value, found.epochs.provenance) == epochs
    assert (found.batch_size.value, found.batch_size.provenance) == batch_size


def test_the_counters_of_a_real_training_are_read() -> None:
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    update = train_locally(
        model(), images, torch.arange(8), local=LocalTraining(0.1, epochs=3, batch_size=4), batch_norm="train_shared"
    )
    assert counted_steps(model(), update.buffers or {}) == 6
    state = {name: p + update.gradients[name] for name, p in model().named_parameters()} | (update.buffers or {})
    found = capture_weight_delta(
        model(),
        state,
        image_count=8,
        image_shape=(3, 8, 8),
        local=LocalFacts(batch_size=told(4), learning_rate=assumed(None)),
        batch_norm="train_shared",
    )
    assert found.facts.local is not None
    assert (found.facts.local.epochs.value, found.facts.local.epochs.provenance) == (3, READ)
    # A client that keeps its statistics shows no counter.
    kept = capture_weight_delta(
        model(), state, image_count=8, image_shape=(3, 8, 8), local=LocalFacts(), batch_norm="train_private"
    )
    assert kept.facts.local is not None
    assert kept.facts.local.epochs == assumed(1)


def test_counters_that_disagree_tell_nothing() -> None:
    before, after = model(), copy.deepcopy(model())
    state = after.state_dict()
    state["1.num_batches_tracked"] += 2
    assert counted_steps(before, state) is None
    state["4.num_batches_tracked"] += 2
    assert counted_steps(before, state) == 2

"""What is said of images that somebody told to be those behind a captured update."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.audit.truth import describe_truth_gap, measure_truth_gap
from gradinversion.capture import CapturedUpdate, ClientConfig, PrivateBatch, read, simulate_client
from torch import nn

CLIENT = ClientConfig(batch_size=2, image_size=16)
Case = tuple[CapturedUpdate, nn.Module, PrivateBatch]


@pytest.fixture(scope="module")
def case() -> Case:
    return simulate_client(CLIENT, 0)


def said(update: CapturedUpdate, model: nn.Module, private: PrivateBatch) -> str:
    return describe_truth_gap(measure_truth_gap(model, private, update), update)


@pytest.mark.parametrize("settings", [{}, {"bn": "train_shared"}, {"local_epochs": 2, "local_batch_size": 1}])
def test_the_right_images_are_found_to_be_right(settings: dict[str, Any]) -> None:
    update, model, private = simulate_client(replace(CLIENT, **settings), 0)
    assert said(update, model, private).startswith("The private images give this update: at them")


@pytest.mark.parametrize("what", ["labels", "order", "images"])
def test_other_images_and_other_labels_do_not_give_the_update(case: Case, what: str) -> None:
    update, model, private = case
    wrong = {
        "labels": replace(private, labels=torch.tensor([0, 5])),
        "order": replace(private, labels=private.labels.flip(0)),
        "images": replace(private, images=private.images.flip(-2)),
    }[what]
    text = said(update, model, wrong)
    assert text.startswith("The private images do not give this update")
    assert "nothing will be called safe" in text


def test_a_learning_rate_that_was_read_off_the_update_is_an_estimate() -> None:
    update, model, private = simulate_client(replace(CLIENT, local_epochs=1), 0)
    rate = update.facts.local.learning_rate.value if update.facts.local is not None else None
    assert measure_truth_gap(model, private, update) is not None
    estimated = update.stating(learning_rate=read(rate, "the final layer's gradient"))
    assert measure_truth_gap(model, private, estimated) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"defence": "prune", "defence_strength": 0.9},
            r"cannot be checked after the client's defence \(prune 0\.9\)\.",
        ),
        ({"local_epochs": 2, "local_batch_size": 1, "shuffled": True}, r"cannot be checked\."),
        ({"local_epochs": 1, "learning_rate_known": False}, r"cannot be checked\."),
    ],
)
def test_what_cannot_be_checked_is_told(settings: dict[str, Any], words: str) -> None:
    update, model, private = simulate_client(replace(CLIENT, **settings), 0)
    assert re.search(words, said(update, model, private))

"""A defence that shows and was not stated is a contradiction, and so is one that was stated and does not show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.capture import (
    ClientConfig,
    Defence,
    LocalTraining,
    apply_defence,
    capture_gradient,
    simulate_client,
    told,
    train_locally,
)
from gradinversion.target import weigh_evidence
from gradinversion.target.signatures import pruning_slack
from torch import nn


@pytest.mark.parametrize(
    "defence",
    [
        "none",
        "noise:0.1",
        "clip:0.1",
        "prune:0.9",
        "quantise:8",
        "dp_sgd:0",
        "dp_sgd:1",
        "soteria:0.2",
        "clip:0.1+noise:0.1",
        "prune:0.9+clip:0.1",
        "prune:0.9+quantise:8",
        "quantise:8+noise:0.01",
        "soteria:0.2+prune:0.8",
    ],
)
def test_what_a_client_truly_does_is_never_contradicted(defence: str) -> None:
    settings: dict[str, Any] = {"defence": "none"} if defence == "none" else {"defence": defence}
    update, model, _ = simulate_client(ClientConfig(image_size=8, defence_clip=0.3, **settings), seed=0)
    assert "defences" not in weigh_evidence(update, model).contradictions


@pytest.mark.parametrize(
    ("name", "strength", "words"),
    [
        ("noise", 0.1, "as with noise of deviation"),
        ("prune", 0.9, "as after pruning"),
        ("quantise", 8, "as after rounding"),
    ],
)
def test_a_defence_that_shows_and_was_not_stated(
    make_case: Callable[..., Any], name: str, strength: float, words: str
) -> None:
    case = make_case()
    changed = apply_defence(case.update.gradients, name, strength, torch.Generator().manual_seed(0))
    sent = case.sending(lambda key, g: changed[key])
    assert words in weigh_evidence(sent, case.model).contradictions["defences"]


@pytest.mark.parametrize(
    ("defence", "words"),
    [
        (Defence("noise", 0.1), "sums to zero over the classes"),
        (Defence("dp_sgd", 1.0, (1.0,)), "sums to zero over the classes"),
        (Defence("clip", 0.01), "a norm of at most 0.01"),
        (Defence("dp_sgd", 0.0, (0.01,)), "a norm of at most 0.01"),
        (Defence("prune", 0.5), "set to zero, and fewer are"),
        (Defence("quantise", 4), "more values than that allows"),
    ],
)
def test_a_defence_that_was_stated_and_does_not_show(
    make_case: Callable[..., Any], defence: Defence, words: str
) -> None:
    case = make_case()
    stated = case.update.stating(defences=told((defence,)))
    assert words in weigh_evidence(stated, case.model).contradictions["defences"]


def test_a_penalty_is_no_noise(make_case: Callable[..., Any]) -> None:
    case = make_case()
    sent = case.sending(lambda name, g: g + 5e-4 * case.weights[name])
    evidence = weigh_evidence(sent, case.model)
    assert "defences" not in evidence.contradictions
    assert "penalty" in evidence.messages[0]


def test_zeros_of_closed_units_are_no_pruning_that_was_not_stated() -> None:
    torch.manual_seed(1)
    convolutions = (nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 2))
    model = nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(8, 10)).eval()
    local = LocalTraining(0.01, 1, 1)
    update = train_locally(model, torch.rand(2, 3, 8, 8), torch.tensor([3, 7]), local=local)
    assert pruning_slack(update.gradients)
    assert "defences" not in weigh_evidence(update, model).contradictions
    pruned = replace(update, gradients=apply_defence(update.gradients, "prune", 0.9))
    assert "the smallest are missing, as after pruning" in weigh_evidence(pruned, model).contradictions["defences"]


def test_zeros_of_either_kind_are_no_reason_for_calm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    local = LocalTraining(0.01, 1, 1)
    update = train_locally(model, torch.rand(2, 3, 2, 2), torch.tensor([0, 3]), local=local)
    few = replace(update, gradients=apply_defence(update.gradients, "prune", 0.9))
    evidence = weigh_evidence(few, model)
    assert "defences" not in evidence.contradictions
    assert any("or the client dropped entries does not show" in limit for limit in evidence.limits)
    told_so = few.stating(defences=told((Defence("prune", 0.9),)))
    assert not any("does not show" in limit for limit in weigh_evidence(told_so, model).limits)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_entries_that_are_dropped_at_random_are_no_reason_for_calm(kept: float) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()
    update = capture_gradient(model, torch.rand(4, 3, 8, 8), torch.arange(4))
    sent = replace(update, gradients={name: g * (torch.rand_like(g) < kept) for name, g in update.gradients.items()})
    evidence = weigh_evidence(sent, model)
    assert "as where entries were dropped" in evidence.contradictions["defences"]
    assert any("or the client dropped entries does not show" in limit for limit in evidence.limits)
    assert "defences" not in weigh_evidence(update, model).contradictions


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_entries_that_are_dropped_from_a_delta_of_several_steps_are_no_reason_for_calm(kept: float) -> None:
    client = ClientConfig(image_size=16, labels="7,2,5,0", local_epochs=2, local_batch_size=2, learning_rate=0.1)
    update, model, _ = simulate_client(client, 0)
    random = torch.Generator().manual_seed(0)
    gradients = {name: g * (torch.rand(g.shape, generator=random) < kept) for name, g in update.gradients.items()}
    limit = "or the client dropped entries does not show"
    dropped = weigh_evidence(replace(update, gradients=gradients), model)
    assert any(limit in one for one in dropped.limits)
    assert not any(limit in one for one in weigh_evidence(update, model).limits)

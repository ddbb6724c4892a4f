"""Running statistics that came with an update, held against the server's and against the gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from gradinversion.capture import (
    BatchNormMode,
    CapturedUpdate,
    ClientConfig,
    Fact,
    LocalTraining,
    UpdateError,
    assumed,
    batch_norm_layers,
    batch_norm_targets,
    simulate_client,
    told,
    train_locally,
)
from gradinversion.capture.batch_norm import running_buffers
from gradinversion.peeling.own_statistics import StatisticsOff
from gradinversion.target import weigh_evidence
from gradinversion.target.shared_statistics import check_shared_statistics, peeled_statistics
from torch import Tensor, nn


@pytest.fixture(scope="module")
def case() -> tuple[CapturedUpdate, nn.Module]:
    update, model, _ = simulate_client(ClientConfig(image_size=16, bn="train_shared"), 0)
    return update, model


def scaled(update: CapturedUpdate, factor: float) -> CapturedUpdate:
    """With variances that are all so many times as large."""
    assert update.buffers is not None
    buffers = {name: factor * one if name.endswith("var") else one for name, one in update.buffers.items()}
    return replace(update, buffers=buffers)


@pytest.mark.parametrize("factor", [0.5, -1.0])
def test_statistics_that_no_batch_makes_are_left_out_and_spoken_of(
    case: tuple[CapturedUpdate, nn.Module], factor: float
) -> None:
    update, model = scaled(case[0], factor), case[1]
    evidence = weigh_evidence(update, model)
    assert "variance would be below zero" in evidence.contradictions["batch_norm"]
    assert evidence.update.buffers is None
    mode = evidence.update.facts.batch_norm
    assert (mode.value, mode.provenance) == (BatchNormMode.TRAIN_PRIVATE, "assumed")
    assert any("They are left out" in message for message in evidence.messages)
    # With the server's own in their place nothing that is not the batch's is taken for it.
    assert not any(one.exact for one in batch_norm_targets(evidence.update, model).values())


def test_those_of_a_step_are_left_as_they_are(case: tuple[CapturedUpdate, nn.Module]) -> None:
    update, model = case
    evidence = weigh_evidence(update, model)
    assert evidence.update.buffers is not None
    assert "batch_norm" not in evidence.contradictions


def test_rounding_makes_no_variance_impossible(case: tuple[CapturedUpdate, nn.Module]) -> None:
    update, model = case
    assert update.buffers is not None
    rounded = {name: one.bfloat16().to(one.dtype) for name, one in update.buffers.items() if one.dim()}
    assert not check_shared_statistics(replace(update, buffers=rounded), model).contradictions


def test_several_steps_move_them_as_far_as_several_batches(case: tuple[CapturedUpdate, nn.Module]) -> None:
    model = case[1]
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    local = LocalTraining(0.01, epochs=4, batch_size=2)
    update = train_locally(model, images, torch.arange(4), local=local, batch_norm=BatchNormMode.TRAIN_SHARED)
    assert not check_shared_statistics(update, model).contradictions
    assert check_shared_statistics(scaled(update, 0.2), model).contradictions


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: {}, "is missing from the update (and "),
        (lambda one: one | {name: part[:1] for name, part in one.items() if name.endswith("mean")}, "has shape (1,)"),
    ],
    ids=["missing", "of another shape"],
)
def test_those_of_other_layers_are_left_out_and_spoken_of(
    case: tuple[CapturedUpdate, nn.Module], change: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: str
) -> None:
    update, model = case
    assert update.buffers is not None
    evidence = weigh_evidence(replace(update, buffers=change(update.buffers)), model)
    assert words in evidence.contradictions["batch_norm"]
    assert evidence.update.buffers is None


def test_what_peeling_shows_of_them_is_said() -> None:
    assert peeled_statistics(None).messages == ()
    rounded = peeled_statistics(StatisticsOff("bn1", 0.01, rounded=True, whole=0.01))
    assert not rounded.contradictions
    assert not rounded.buffers_left_out
    assert "by 0.01 of its deviation" in rounded.messages[0]
    assert "images that rest on them are not taken for known" in rounded.messages[0]
    others = peeled_statistics(StatisticsOff("bn1", 3.0, rounded=False, whole=3.0))
    assert others.buffers_left_out
    assert "follow from the gradient" in others.contradictions["batch_norm"]


@pytest.mark.parametrize(
    ("rounded", "doubted", "words"),
    [(True, False, "they tell nothing"), (False, True, "(epochs, image_count, batch_size)")],
    ids=["as much as rounding", "of steps in doubt"],
)
def test_those_that_may_be_right_are_left_out_and_contradict_nothing(rounded: bool, doubted: bool, words: str) -> None:
    found = peeled_statistics(StatisticsOff("bn1", 5.6, rounded=rounded, whole=5.6), doubted)
    assert found.buffers_left_out
    assert not found.contradictions
    assert words in found.messages[0]


@pytest.mark.parametrize(("epochs", "counters"), [(told(1), True), (assumed(1), True), (assumed(1), False)])
def test_steps_that_may_be_others_leave_the_mode_as_it_was_told(
    case: tuple[CapturedUpdate, nn.Module], epochs: Fact[int], counters: bool
) -> None:
    """Five steps move the buffers so far that no batch does it in one."""
    model = case[1]
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    local = LocalTraining(1e-4, epochs=5)
    update = train_locally(model, images, torch.arange(4), local=local, batch_norm=BatchNormMode.TRAIN_SHARED)
    assert update.buffers is not None
    sent = {name: one for name, one in update.buffers.items() if counters or "tracked" not in name}
    evidence = weigh_evidence(replace(update, buffers=sent).stating(epochs=epochs), model)
    assert "batch_norm" not in evidence.contradictions
    assert evidence.update.buffers is None
    assert any("other steps than the facts say (epochs, image_count" in message for message in evidence.messages)


def test_buffers_without_a_step_do_not_end_the_run(case: tuple[CapturedUpdate, nn.Module]) -> None:
    update, model = case[0], copy.deepcopy(case[1])
    for layer in batch_norm_layers(model).values():
        layer.momentum = None
    found = check_shared_statistics(replace(update, buffers=running_buffers(model)), model)
    assert found.buffers_left_out
    assert "num_batches_tracked is 0 after the client's step" in found.messages[0]


def test_buffers_of_another_shape_are_refused_where_nobody_checked(case: tuple[CapturedUpdate, nn.Module]) -> None:
    update, model = case
    assert update.buffers is not None
    others = {name: one[:1] if one.dim() else one for name, one in update.buffers.items()}
    with pytest.raises(UpdateError, match=r"have shape \(1,\) in the update"):
        batch_norm_targets(replace(update, buffers=others), model)

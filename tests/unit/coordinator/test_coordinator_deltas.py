"""Attacks on weight deltas: one step is the gradient, several are retraced, and the learning rate may be unknown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import AgentsConfig, ObjectiveConfig
from gradinversion.capture import (
    CapturedUpdate,
    LabelError,
    LocalFacts,
    LocalTraining,
    Sampling,
    UpdateKind,
    assumed,
    capture_gradient,
    told,
    train_locally,
)
from gradinversion.coordinator import AttackConfig, Coordinator, Reconstruction, Storage, read_result
from gradinversion.coordinator.identity import identity
from gradinversion.peeling import PeelingConfig
from gradinversion.target.preparation import prepare
from gradinversion.target.weight_deltas import as_attackable, describe
from torch import Tensor, nn

LABELS = torch.tensor([0, 1, 3])
NORMALISATION = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 6)
        ).eval()


@pytest.fixture
def quick(config: AttackConfig) -> AttackConfig:
    return replace(config, labels="auto", agents=AgentsConfig(count=2, iterations=20, warmup=4))


def sent(model: nn.Module, images: Tensor, local: LocalTraining, **facts: Any) -> CapturedUpdate:
    return train_locally(model, images, LABELS, local=local, normalisation=NORMALISATION, **facts)


def hidden(update: CapturedUpdate) -> CapturedUpdate:
    assert update.local is not None
    return update.stating(learning_rate=assumed(None))


def attack(serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig) -> Reconstruction:
    return Coordinator(update, model, config, serial(config)).run()


def as_delta(update: CapturedUpdate, rate: float) -> CapturedUpdate:
    gradients = {name: -rate * gradient for name, gradient in update.gradients.items()}
    facts = replace(update.facts, local=LocalFacts.told(LocalTraining(rate)))
    return replace(update, gradients=gradients, kind=UpdateKind.WEIGHT_DELTA, facts=facts)


@pytest.mark.parametrize("peeling", [True, False])
def test_delta_of_one_step_gives_the_images_of_the_gradient_bit_for_bit(
    serial: Any, model: nn.Module, quick: AttackConfig, peeling: bool, images: Tensor
) -> None:
    update = capture_gradient(model, images, LABELS, normalisation=NORMALISATION)
    quick = replace(quick, peeling=PeelingConfig(enabled=peeling))
    # A power of two: the division by it rounds nothing.
    one, other = (attack(serial, held, model, quick) for held in (update, as_delta(update, 2.0**-6)))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels.labels, other.labels.labels)
    assert one.gradient_loss == other.gradient_loss
    assert "one step of SGD" in other.training
    assert one.training == ""


def test_trained_step_is_as_good_as_the_gradient_but_for_the_rounding_of_the_weights(
    model: nn.Module, images: Tensor, quick: AttackConfig
) -> None:
    prepared = prepare(sent(model, images, LocalTraining(0.5)), model, quick.request)
    assert prepared.target.anchor is not None
    assert prepared.target.update.kind is UpdateKind.GRADIENT
    assert torch.equal(prepared.labels.labels, LABELS)
    assert prepared.labels.warnings == ()


@pytest.mark.parametrize("batch_norm", ["eval", "train_shared", "train_private"])
def test_learning_rate_of_one_step_is_found_exactly_where_features_determine_it(
    model: nn.Module, images: Tensor, quick: AttackConfig, batch_norm: str
) -> None:
    update = hidden(sent(model, images, LocalTraining(0.4, weight_decay=0.01), batch_norm=batch_norm))
    prepared = prepare(update, model, quick.request)
    assert prepared.target.scale_known
    assert prepared.target.anchor is not None
    (line,) = [line for line in prepared.messages if "alone" in line]
    assert float(line.split("rate of ")[1].split()[0]) == pytest.approx(0.4, rel=1e-4)
    assert "estimated by the server" in prepared.training


def test_estimate_stands_where_the_features_do_not_determine_the_rate(
    model: nn.Module, images: Tensor, quick: AttackConfig
) -> None:
    repeated = train_locally(
        model, images, torch.tensor([1, 1, 4]), local=LocalTraining(0.01), normalisation=NORMALISATION
    )
    prepared = prepare(hidden(repeated), model, replace(quick, labels="1,1,4").request)
    assert not prepared.target.scale_known
    assert any("estimated at 0.0" in line for line in prepared.messages)


def test_several_steps_are_retraced_and_the_result_says_so(
    serial: Any, model: nn.Module, images: Tensor, quick: AttackConfig, tmp_path: Path
) -> None:
    update = sent(model, images, LocalTraining(0.2, epochs=2, batch_size=2), batch_norm="train_shared")
    storage = Storage(str(tmp_path))
    group = serial(quick, storage)
    found = Coordinator(update, model, quick, group, storage).run()
    assert any("Layer peeling needs a gradient" in line for line in found.messages)
    assert any("retraces the client's 4 local steps" in line for line in found.messages)
    assert any("approximation" in line for line in found.messages)
    for words in ("4 steps of SGD (2 epochs x 2 batches)", "learning rate 0.2, known", "in order of their labels"):
        assert words in found.training
    again = read_result(storage)
    assert again is not None
    assert again.training == found.training
    assert group.target.update.kind is UpdateKind.WEIGHT_DELTA


def test_several_steps_with_a_rate_that_is_not_known(model: nn.Module, images: Tensor, quick: AttackConfig) -> None:
    update = hidden(sent(model, images, LocalTraining(0.05, epochs=2, batch_size=2, shuffled=True)))
    prepared = prepare(update, model, quick.request)
    assert prepared.target.update.local is not None
    assert prepared.target.update.local.learning_rate == pytest.approx(0.05, rel=0.2)
    assert not prepared.target.scale_known
    assert "is not known, and each step is taken for one over all images" in prepared.training


def test_given_labels_keep_their_order_where_it_says_who_was_in_which_step(
    model: nn.Module, images: Tensor, quick: AttackConfig
) -> None:
    told = replace(quick, labels="3,0,1")
    for local, labels in (
        (LocalTraining(0.2, epochs=2, batch_size=2), [3, 0, 1]),
        (LocalTraining(0.2, epochs=2, batch_size=2, shuffled=True), [0, 1, 3]),
        (LocalTraining(0.2, epochs=2), [0, 1, 3]),
        (LocalTraining(0.2), [0, 1, 3]),
    ):
        prepared = prepare(sent(model, images, local), model, told.request)
        assert prepared.labels.labels.tolist() == labels
    ordered = prepare(sent(model, images, LocalTraining(0.2, batch_size=2)), model, told.request)
    assert "from the order of the labels that were given" in ordered.training


def test_the_control_without_the_gradient_runs_on_a_delta(
    serial: Any, model: nn.Module, images: Tensor, quick: AttackConfig
) -> None:
    update = sent(model, images, LocalTraining(0.2, epochs=2), batch_norm="train_shared")
    control = replace(quick, objective=ObjectiveConfig(gradient_weight=0.0), peeling=PeelingConfig(enabled=False))
    found = attack(serial, update, model, control)
    assert "batch_norm" in found.history[-1]
    assert "gradient" not in found.history[-1]


def test_a_rate_that_cannot_be_estimated_is_asked_for(images: Tensor, quick: AttackConfig) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6, bias=False))
    with pytest.raises(LabelError, match="without a bias in the final layer it cannot be estimated; give it"):
        prepare(hidden(sent(model, images, LocalTraining(0.1))), model, quick.request)


def test_a_run_is_another_one_with_other_local_steps(model: nn.Module, images: Tensor, quick: AttackConfig) -> None:
    update = sent(model, images, LocalTraining(0.1))
    other = replace(update, facts=replace(update.facts, local=LocalFacts.told(LocalTraining(0.1, epochs=2))))
    assert identity(quick, update) != identity(quick, other)
    assert identity(quick, update)["fact.learning_rate"] == "0.1"


@pytest.mark.parametrize("local", [None, LocalTraining(0.5), LocalTraining(0.5, weight_decay=0.1)])
def test_a_sum_divided_by_the_expected_number_of_images_is_taken_as_their_mean(
    model: nn.Module, images: Tensor, quick: AttackConfig, local: LocalTraining | None
) -> None:
    """Three images of which four were expected, as Poisson sampling makes them."""
    mean = capture_gradient(model, images, LABELS, normalisation=NORMALISATION)
    divided = replace(mean, gradients={name: 0.75 * g for name, g in mean.gradients.items()})
    if local is not None:
        divided = as_delta(divided, local.learning_rate or 0.0)
        weights = dict(model.named_parameters())
        steps = {name: g - 0.5 * local.weight_decay * weights[name].detach() for name, g in divided.gradients.items()}
        divided = replace(divided, gradients=steps).stating(weight_decay=told(local.weight_decay))
    update = divided.stating(sampling=told(Sampling(True, 4.0)))
    prepared = prepare(update, model, quick.request)
    for name, gradient in mean.gradients.items():
        torch.testing.assert_close(prepared.target.update.gradients[name], gradient, rtol=1e-4, atol=1e-6)
    assert sum("divided the sum over its 3 images by 4" in line for line in prepared.messages) == 1
    assert torch.equal(prepared.labels.labels, LABELS)
    # The same number of images as were expected: nothing to take out, and nothing to say.
    plain = prepare(mean.stating(sampling=told(Sampling(True, 3.0))), model, quick.request)
    assert all(plain.target.update.gradients[name] is g for name, g in mean.gradients.items())
    assert not any("divided the sum" in line for line in plain.messages)


def test_an_estimated_rate_has_taken_up_the_divisor(model: nn.Module, images: Tensor, quick: AttackConfig) -> None:
    mean = capture_gradient(model, images, LABELS, normalisation=NORMALISATION)
    update = as_delta(replace(mean, gradients={name: 0.75 * g for name, g in mean.gradients.items()}), 0.4)
    held = hidden(update).stating(sampling=told(Sampling(True, 4.0)))
    found = as_attackable(held, model)
    assert not any("divided the sum" in line for line in found.messages)
    assert found.rate is not None
    for name, delta in held.gradients.items():
        torch.testing.assert_close(found.update.gradients[name], -delta / found.rate)
    prepared = prepare(held, model, quick.request)
    for name, gradient in mean.gradients.items():
        torch.testing.assert_close(prepared.target.update.gradients[name], gradient, rtol=1e-2, atol=1e-4)


def test_local_steps_on_batches_drawn_by_chance_are_doubted(
    model: nn.Module, images: Tensor, quick: AttackConfig
) -> None:
    update = sent(model, images, LocalTraining(0.2, epochs=2, batch_size=2)).stating(sampling=told(Sampling(True, 2.0)))
    prepared = prepare(update, model, quick.request)
    assert not [fact for fact in prepared.facts if fact.doubtful]
    assert any("4 local steps by chance" in limit for limit in prepared.limits)


@pytest.mark.parametrize(
    ("guessed", "said", "unsaid"),
    [
        ({}, "The client sent the weight delta of one step of SGD", ""),
        ({"epochs": 1}, "The update is taken for the weight delta of one step", "Nobody told the client's epochs: the"),
        (
            {"weight_decay": 0.0},
            "The client sent the weight delta of one step",
            "Nobody told the client's weight decay",
        ),
        # The velocity of a first step is its gradient.
        ({"momentum": 0.0}, "The client sent the weight delta of one step of SGD", ""),
        ({"epochs": 2}, "The update is taken for the weight delta of 2 steps", "Nobody told the client's epochs: the"),
        (
            {"epochs": 2, "momentum": 0.0, "batch_size": None},
            "The update is taken for the weight delta of 2 steps",
            "Nobody told the client's epochs, batch size and momentum: the commonest is assumed.",
        ),
    ],
)
def test_what_was_assumed_of_the_local_steps_is_never_stated_as_a_fact(
    model: nn.Module, images: Tensor, guessed: dict[str, Any], said: str, unsaid: str
) -> None:
    update = sent(model, images, LocalTraining(0.2)).stating(**{n: assumed(v) for n, v in guessed.items()})
    sentence = describe(update, as_attackable(update, model), labels_given=False)
    assert sentence.startswith(said)
    assert unsaid in sentence
    assert ("Nobody told" in sentence) is bool(unsaid)

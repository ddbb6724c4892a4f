"""The learning rates that local steps show, against the one of the facts."""

from __future__ import annotations

import pytest
import torch
from gradinversion.capture import CapturedUpdate, Defence, LocalTraining, assumed, load_model, told, train_locally
from gradinversion.peeling.step_sizes import StepSizes
from gradinversion.target.step_rates import check_rates


@pytest.fixture(scope="module")
def update() -> CapturedUpdate:
    local = LocalTraining(0.1, epochs=1, batch_size=1)
    return train_locally(load_model("convnet"), torch.rand(2, 3, 32, 32), torch.tensor([1, 2]), local=local)


def test_rates_as_they_were_told_say_nothing(update: CapturedUpdate) -> None:
    for sizes in (None, StepSizes((1.0, 1.01), 1e-5), StepSizes((1.0, 1.2), 0.05)):
        found = check_rates(update, sizes, known=True)
        assert (found.facts, found.contradictions, found.messages, found.limits) == ({}, {}, (), ())


def test_rates_that_changed_contradict_the_one_of_the_facts(update: CapturedUpdate) -> None:
    found = check_rates(update, StepSizes((1.0, 0.1), 1e-4), known=False)
    assert "learning rates of 0.1 and 0.01, and the facts say 0.1 for each" in found.contradictions["learning_rate"]
    assert found.messages[0].startswith("The local steps were as large as")
    for words in ("momentum or its variant (Nesterov, dampening)", "clipped", "a sum over batches of unequal size"):
        assert words in found.contradictions["learning_rate"]
    assert len(found.limits) == 1
    assert "do not obey these" in found.limits[0]
    assert check_rates(update, StepSizes((1.0, 0.1), 1e-4), known=True).limits == ()


def test_many_rates_are_not_all_listed(update: CapturedUpdate) -> None:
    rates = tuple(1 - 0.1 * step for step in range(10))
    said = check_rates(update, StepSizes(rates, 1e-4), known=True).contradictions["learning_rate"]
    assert "0.1 to 0.01 (between 0.01 and 0.1)" in said


def test_one_other_rate_contradicts_what_was_told_and_replaces_what_was_estimated(update: CapturedUpdate) -> None:
    sizes = StepSizes((0.5, 0.5), 1e-4)
    found = check_rates(update, sizes, known=True)
    assert "at a learning rate of 0.05, and the facts say 0.1" in found.contradictions["learning_rate"]
    assert (
        "the scale or the smoothing of the loss is another, or the delta was scaled or clipped as a whole"
        in (found.contradictions["learning_rate"])
    )
    estimated = check_rates(update.stating(learning_rate=assumed(0.1)), sizes, known=True)
    assert estimated.contradictions == {}
    assert estimated.facts["learning_rate"].value == pytest.approx(0.05)
    assert estimated.messages == ("Each local step was as large as at a learning rate of 0.05.",)


def test_a_delta_that_was_scaled_as_a_whole_is_of_no_other_rate(update: CapturedUpdate) -> None:
    clipped = update.stating(defences=told((Defence("clip", 1.0),)))
    found = check_rates(clipped, StepSizes((0.5, 0.5), 1e-4), known=True)
    assert (found.facts, found.contradictions) == ({}, {})

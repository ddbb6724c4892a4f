"""The learning rate of each step, from the derivatives by the logits of its visits."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from gradinversion.peeling.local_steps import LocalSteps
from gradinversion.peeling.rules import Derivation, Knowledge
from gradinversion.peeling.rules.knowledge import evenly
from gradinversion.peeling.step_sizes import StepSizes, agree, step_sizes
from torch import Tensor

CLASSES = 6


def derivation(logits: Tensor, derivative: Tensor, error: float = 1e-6) -> Derivation:
    """All that is looked at: the final layer's output and the derivative by it."""
    off = torch.full((len(logits),), error, dtype=torch.float64)
    known = Knowledge().with_activations("out", evenly(logits, off, "taps"))
    known = known.with_arriving("out", evenly(derivative, off, "taps"))
    return cast(Derivation, SimpleNamespace(knowledge=known, graph=SimpleNamespace(output="out")))


def visits(steps: LocalSteps, rates: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Of a client with these rates and the momentum of `steps`."""
    true = replace(steps, sizes=rates)
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(steps.visit_count, CLASSES, dtype=torch.float64, generator=random)
    labels = torch.randint(CLASSES, (steps.visit_count,), generator=random)
    derivative = logits.softmax(dim=1) - torch.eye(CLASSES, dtype=torch.float64)[labels]
    for part, count, size in zip(true.slices, true.counts.tolist(), steps.visits, strict=True):
        derivative[part] *= count / size
    return logits, derivative


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("rates", [(1.0, 1.0, 1.0), (1.0, 0.1, 0.01), (0.25, 0.25, 0.25), (1.0, 2.0, 0.5)])
def test_rates_are_those_of_the_client(momentum: float, rates: tuple[float, ...]) -> None:
    steps = LocalSteps((2, 2, 1), 0.05, momentum)
    found = step_sizes(derivation(*visits(steps, rates)), steps, [1.0] * 3)
    assert found is not None
    assert found.rates == pytest.approx(rates, rel=1e-6)
    assert found.constant == (len(set(rates)) == 1)
    assert found.as_told == (set(rates) == {1.0})
    assert agree(found, LocalSteps(steps.visits, 0.05, momentum, sizes=rates))
    assert agree(found, steps) == found.constant


def test_a_large_error_does_not_hide_that_the_steps_show_other_rates() -> None:
    found = StepSizes((1.0, 0.8, 0.6, 0.4), error=0.16)
    assert found.vague
    assert found.constant
    assert not agree(found, LocalSteps((2, 2, 2, 2), 0.05, 0.9))
    assert agree(found, LocalSteps((2, 2, 2, 2), 0.05, 0.9, sizes=(0.5, 0.4, 0.3, 0.2)))


def test_the_scale_of_the_loss_is_no_rate() -> None:
    steps = LocalSteps((2, 1), 0.05)
    logits, derivative = visits(steps, (1.0, 1.0))
    derivative *= torch.tensor([2.0, 2.0, 1.0]).unsqueeze(1)
    found = step_sizes(derivation(logits, derivative), steps, [2.0, 1.0])
    assert found is not None
    assert found.as_told


def test_a_derivative_of_no_label_shows_nothing() -> None:
    steps = LocalSteps((2, 1), 0.05)
    logits, derivative = visits(steps, (1.0, 1.0))
    assert step_sizes(derivation(logits, derivative.flip(1)), steps, [1.0] * 2) is None


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weight_decay_takes_from_what_earlier_steps_did(momentum: float) -> None:
    steps, rates = LocalSteps((2, 1, 1), 0.05, momentum, weight_decay=0.5), (1.0, 0.5, 2.0)
    found = step_sizes(derivation(*visits(steps, rates)), steps, [1.0] * 3)
    assert found is not None
    assert found.rates == pytest.approx(rates, rel=1e-6)
    # The weights themselves decay with the rate, so that one factor for all is another rate.
    thrice = StepSizes((3.0, 1.5, 6.0), 1e-6)
    assert not agree(thrice, replace(steps, sizes=rates))
    assert agree(thrice, replace(steps, sizes=rates, weight_decay=0.0))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_of_several_clients_each_shows_its_own_rates(momentum: float) -> None:
    steps = LocalSteps((1, 2, 1, 2, 1, 2), 0.05, momentum, clients=2)
    logits, derivative = visits(steps, (1.0, 0.5, 0.1))
    found = step_sizes(derivation(logits, derivative), steps, [1.0] * 6)
    assert found is not None
    assert found.rates == pytest.approx((1.0, 1.0, 0.5, 0.5, 0.1, 0.1), rel=1e-6)
    assert found.common == pytest.approx((1.0, 0.5, 0.1), rel=1e-6)
    assert agree(found, replace(steps, sizes=(1.0, 0.5, 0.1)))
    assert not agree(found, steps)
    for part in steps.slices[1::2]:
        derivative[part] *= 0.5
    other = step_sizes(derivation(logits, derivative), steps, [1.0] * 6)
    assert other is not None
    assert other.rates == pytest.approx((1.0, 0.5, 0.5, 0.25, 0.1, 0.05), rel=1e-6)
    assert other.common is None


def test_what_is_badly_known_differs_from_nothing() -> None:
    assert StepSizes((1.0, 1.3), 0.1).constant
    assert StepSizes((0.8, 1.1), 0.1).as_told
    assert not StepSizes((1.0, 1.3), 0.01).constant


@pytest.mark.parametrize("decay", [20.0, 30.0])
def test_weight_decay_that_leaves_nothing_shows_no_rate(decay: float) -> None:
    # The second step counts for 1, so that one minus decay x rate x 1 is zero, or less.
    steps = LocalSteps((2, 1), 0.05)
    logits, derivative = visits(steps, (1.0, 1.0))
    assert step_sizes(derivation(logits, derivative), replace(steps, weight_decay=decay), [1.0] * 2) is None

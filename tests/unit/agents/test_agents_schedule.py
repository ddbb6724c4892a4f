"""The learning rate, step by step."""

from __future__ import annotations

import itertools
import math

import pytest
from gradinversion.agents import learning_rate


def test_warm_up_is_linear_and_reaches_the_peak_when_it_ends() -> None:
    rates = [learning_rate(step, steps=1000, warmup=4, peak=0.5) for step in range(5)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_half_a_cosine_from_there() -> None:
    def rate(step: int) -> float:
        return learning_rate(step, steps=1050, warmup=50, peak=2.0)

    assert rate(50) == 2.0
    assert rate(50 + 250) == pytest.approx(1 + math.cos(math.pi / 4))
    assert rate(50 + 500) == pytest.approx(1.0)
    assert rate(1050) == pytest.approx(0.0, abs=1e-12)
    assert rate(2000) == pytest.approx(0.0, abs=1e-12)


def test_it_never_rises_after_warm_up_and_is_positive_to_the_last_step() -> None:
    rates = [learning_rate(step, steps=200, warmup=20, peak=0.1) for step in range(200)]
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[20:]))
    assert max(rates) == 0.1
    assert min(rates) > 0


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_short_run_is_not_all_warm_up(steps: int) -> None:
    rates = [learning_rate(step, steps=steps, warmup=50, peak=0.1) for step in range(steps)]
    assert max(rates) == 0.1
    assert all(0 < rate <= 0.1 for rate in rates)


def test_without_warm_up_the_first_step_is_a_full_one() -> None:
    assert learning_rate(0, steps=100, warmup=0, peak=0.1) == 0.1

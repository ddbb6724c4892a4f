"""Least squares by Levenberg and Marquardt, with what it may cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gradinversion.peeling.conjugate_gradients import Descended, conjugate_gradients
from gradinversion.peeling.rules import linearised
from gradinversion.peeling.rules.linearised import levenberg_marquardt
from torch import Tensor


def _solves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Iterations of each solve."""
    made: list[int] = []

    def counted(*given: Any) -> Descended:
        found = conjugate_gradients(*given)
        made.append(found.made)
        return found

    monkeypatch.setattr(linearised, "conjugate_gradients", counted)
    return made


def test_solves_that_gain_nothing_are_within_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _solves(monkeypatch)

    def residual(one: Tensor) -> Tensor:
        # A slope in which no step gains.
        here = one.detach()
        return torch.linspace(1, 2, 40) + (one - here) + 1e6 * here.abs()

    start = torch.zeros(40)
    assert torch.equal(levenberg_marquardt(residual, start, 3, 2), start)
    # One iteration settles each.
    assert len(made) == 3 * 2


def test_steps_that_gain_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _solves(monkeypatch)

    def residual(one: Tensor) -> Tensor:
        return torch.cat([one.exp() - 2, one.square() - 1])

    found = levenberg_marquardt(residual, torch.zeros(5), 3, 40)
    assert len(made) == 3
    assert float(residual(found).square().sum()) < float(residual(torch.zeros(5)).square().sum())


def test_what_is_nearly_the_inverse_of_the_normal_matrix_settles_a_step_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = _solves(monkeypatch)
    scale = torch.logspace(-2, 2, 50)

    def residual(one: Tensor) -> Tensor:
        return scale * (one - 1)

    found = levenberg_marquardt(
        residual, torch.zeros(50), 1, 5, 1e-9, 1e-3, lambda _: lambda move: move / scale.square()
    )
    assert made[0] <= 2
    torch.testing.assert_close(found, torch.ones(50), rtol=1e-2, atol=1e-2)
    plain = levenberg_marquardt(residual, torch.zeros(50), 1, 5, 1e-9, 1e-3)
    assert float((plain - 1).abs().max()) > 0.5

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gradinversion.peeling.rules.nonnegative import Nonnegative, solve_nonnegative
from torch import Tensor

UNKNOWNS = 120


def _case(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Equations, as many as there are rows, and what solves them, of which half is zero."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(UNKNOWNS, generator=random, dtype=torch.float64).clamp_min(0)
    return torch.randn(rows, UNKNOWNS, generator=random, dtype=torch.float64), values


def _solved(matrix: Tensor, values: Tensor, start: Tensor, steps: int = 4000) -> Nonnegative:
    normal: Callable[[Tensor], Tensor] = lambda vector: matrix.T @ (matrix @ vector)  # noqa: E731
    free = torch.ones(UNKNOWNS, dtype=torch.bool)
    return solve_nonnegative(normal, normal(values), free, start, lambda vector: vector, steps)


@pytest.mark.parametrize("rows", [UNKNOWNS - 12, UNKNOWNS + 12])
def test_half_of_the_unknowns_at_zero_is_worth_equations(rows: int) -> None:
    """Fewer equations than unknowns are enough, from wherever it begins."""
    matrix, values = _case(rows)
    for start in (torch.zeros_like(values), values.roll(1), -values):
        found = _solved(matrix, values, start)
        assert found.settled
        assert float((found.solution - values).norm()) < 1e-5 * float(values.norm())
        assert not bool((found.shut & (values > 1e-3)).any())


def test_what_equations_leave_open_is_another_solution_from_another_start() -> None:
    matrix, values = _case(UNKNOWNS // 2)
    one, other = (_solved(matrix, values, start).solution for start in (torch.zeros_like(values), 2 * values.roll(7)))
    assert float((one - other).norm()) > 0.1 * float(values.norm())
    assert float(torch.cat([one, other]).min()) >= 0


def test_what_has_not_ended_is_said_to_be_so() -> None:
    matrix, values = _case(UNKNOWNS - 12)
    found = _solved(matrix, values, torch.zeros_like(values), steps=5)
    assert not found.settled
    assert float(found.solution.min()) >= 0


def test_entries_that_are_not_looked_for_stay_zero() -> None:
    matrix, values = _case(UNKNOWNS + 12)
    free = torch.arange(UNKNOWNS) >= 10
    kept = values * free
    found = solve_nonnegative(
        lambda vector: matrix.T @ (matrix @ vector),
        matrix.T @ (matrix @ kept),
        free,
        torch.ones_like(values),
        lambda vector: vector,
        4000,
    )
    torch.testing.assert_close(found.solution, kept, rtol=1e-5, atol=1e-5)
    assert not bool((found.shut & ~free).any())

"""Conjugate gradients on matrices that can be solved directly."""

from __future__ import annotations

import torch
from gradinversion.peeling.conjugate_gradients import conjugate_gradients


def _system() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 12, generator=random, dtype=torch.float64)
    return rows.T @ rows, torch.randn(12, generator=random, dtype=torch.float64)


def test_as_many_iterations_as_unknowns_solve_the_equations_from_any_start() -> None:
    matrix, right = _system()
    expected = torch.linalg.solve(matrix, right)
    for start in (None, torch.ones_like(right)):
        found = conjugate_gradients(lambda values: matrix @ values, right, 40, 1e-12, start)
        torch.testing.assert_close(found.solution, expected, rtol=1e-8, atol=1e-10)
        assert float(found.left) <= 1e-20 * float(found.wanted)


def test_the_inverse_as_preconditioner_needs_one_iteration() -> None:
    matrix, right = _system()
    found = conjugate_gradients(
        lambda values: matrix @ values, right, 1, 1e-12, precondition=lambda values: torch.linalg.solve(matrix, values)
    )
    torch.testing.assert_close(found.solution, torch.linalg.solve(matrix, right), rtol=1e-8, atol=1e-10)


def test_what_was_not_followed_to_its_end_says_so() -> None:
    matrix, right = _system()
    found = conjugate_gradients(lambda values: matrix @ values, right, 2, 1e-12)
    assert float(found.left) > 1e-6 * float(found.wanted)
    assert torch.equal(conjugate_gradients(lambda values: values, 0 * right, 5, 1e-12).solution, 0 * right)

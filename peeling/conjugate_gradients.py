"""Conjugate gradients (Hestenes & Stiefel 1952) for normal equations that are known by their products alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Descended:
    """Where the iterations ended."""

    solution: Tensor
    left: Tensor
    """Square of what is left of the right side, in the preconditioner's norm."""
    wanted: Tensor
    """That of the right side itself."""
    made: int
    """Iterations."""


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor],
    right: Tensor,
    iterations: int,
    settled: float,
    start: Tensor | None = None,
    precondition: Callable[[Tensor], Tensor] | None = None,
    fallen: float = 0.0,
) -> Descended:
    """The solution of normal equations, as far as it was followed.

    Args:
        normal: What the matrix makes of a vector.
        right: The right side.
        iterations: At most.
        settled: Share of the right side's length at which it ends.
        start: Where to begin; by default zero.
        precondition: Nearly the inverse of the matrix, symmetric and positive.
        fallen: Share of the length that is left at the start, at which it ends too.
    """
    solution = torch.zeros_like(right) if start is None else start.clone()
    residual = right.clone() if start is None else right - normal(solution)
    scaled = residual if precondition is None else precondition(residual)
    wanted = (right * (right if precondition is None else precondition(right))).sum()
    direction, square = scaled.clone(), (residual * scaled).sum()
    limit = (settled**2 * wanted).maximum(fallen**2 * square)
    made = 0
    for _ in range(iterations):
        if not square > limit:  # settled, or not a number
            break
        made += 1
        image = normal(direction)
        length = square / (direction * image).sum()
        solution = solution + length * direction
        residual = residual - length * image
        scaled = residual if precondition is None else precondition(residual)
        following = (residual * scaled).sum()
        direction = scaled + following / square * direction
        square = following
    return Descended(solution, square, wanted, made)

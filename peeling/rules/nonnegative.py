"""Least squares whose unknowns are not below zero, by primal-dual active sets.

What comes out of a rectifier is not below zero, and a third to a half of it is zero: known so, that is worth as many
equations. Setting what comes out negative to zero once and for all is not enough, since entries that are not followed
to their end come out negative too. Here an entry that was set to zero is let go again where the slope asks for it
(Hintermüller, Ito and Kunisch, SIAM J. Optim. 13, 2002), and both sets are looked at often, after a few conjugate
gradients from where the last ones ended: nothing need be followed to its end before the sets are right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..conjugate_gradients import conjugate_gradients

# Between two looks at the sets, what is left falls to this share; at most so many steps are made for it.
_SHARE, _AT_ONCE = 0.03, 200
# It ends where solutions move by no more than this from look to look, relative.
_STILL = 1e-7
# Shares of the right side, in the preconditioner's norm: where solutions end, and from where on they are followed.
SETTLED, FOLLOWED = 1e-9, 1e-6
# Products with the matrix at each look, beside those of the steps.
_LOOK = 2


@dataclass(frozen=True)
class Nonnegative:
    """The solution, as far as it was followed."""

    solution: Tensor
    """Zero where entries were not free."""
    shut: Tensor
    """Free entries that are zero."""
    settled: bool
    """Whether it was followed to its end."""
    made: int
    """Products with the matrix."""


def solve_nonnegative(
    normal: Callable[[Tensor], Tensor],
    right: Tensor,
    free: Tensor,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    steps: int,
) -> Nonnegative:
    """Free entries, not below zero, by their normal equations; all other entries are zero.

    Args:
        normal: What the matrix makes of a vector.
        right: The right side.
        free: Which entries are looked for.
        start: Where to begin.
        precondition: Nearly the inverse of the matrix, symmetric and positive.
        steps: Products with the matrix, at most.
    """
    opened, before = free, torch.zeros_like(start)
    solution, settled, made = start * free, False, 0
    while made < steps:
        solution, followed, more = _followed(normal, right, opened, solution, precondition, steps - made)
        made += more
        slope = normal(solution) - right
        below, pulled = opened & (solution < 0), free & ~opened & (slope < 0)
        still = float((solution - before).norm()) <= _STILL * float(solution.norm())
        settled = followed and (still or not bool((below | pulled).any()))
        if settled:
            break
        before, opened = solution, (opened & ~below) | pulled
    return Nonnegative(solution.clamp_min(0), free & ~(opened & (solution > 0)), settled, made)


def _followed(
    normal: Callable[[Tensor], Tensor],
    right: Tensor,
    opened: Tensor,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    steps: int,
) -> tuple[Tensor, bool, int]:
    """A solution on the open entries nearer to its end, whether it is there, and products with the matrix."""
    found = conjugate_gradients(
        lambda values: opened * normal(values),
        opened * right,
        min(_AT_ONCE, steps),
        SETTLED,
        opened * start,
        lambda values: opened * precondition(opened * values),
        fallen=_SHARE,
    )
    return found.solution, bool(found.left <= FOLLOWED**2 * found.wanted), found.made + _LOOK

"""A function near a point: what its derivative makes of a move, and of a vector on the other side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..conjugate_gradients import Descended, conjugate_gradients

# Damping, as a share of the mean curvature: at first, and how it is changed.
_DAMPING, _LESS, _MORE, _MOST_DAMPING = 1e-3, 0.25, 3.0, 1e3
# The parts of a step that are tried, and the falls with which the first part is taken and damping is lowered.
_PARTS, _TAKEN, _GOOD = (1.0, 0.4, 0.15), 0.98, 0.7
_SETTLED = 1e-2

Precondition = Callable[[Tensor], Tensor]
"""Nearly the inverse of a normal matrix, symmetric and positive."""


class Linearised:
    """Products with the derivative of a function of one tensor, without the matrix.

    Args:
        function: Differentiable twice.
        point: At which.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], point: Tensor) -> None:
        with torch.enable_grad():
            self._point = point.detach().requires_grad_()
            self._value = function(self._point)
            # The transposed product is linear in its vector: its own derivative is the product itself.
            self._vector = torch.zeros_like(self._value, requires_grad=True)
            (self._back,) = torch.autograd.grad(self._value, self._point, self._vector, create_graph=True)
        self.value = self._value.detach()

    def forth(self, move: Tensor) -> Tensor:
        """The derivative's product with a move of the point."""
        (found,) = torch.autograd.grad(self._back, self._vector, move, retain_graph=True)
        return found

    def back(self, vector: Tensor) -> Tensor:
        """The transposed derivative's product with a vector of the function's values."""
        (found,) = torch.autograd.grad(self._value, self._point, vector, retain_graph=True)
        return found

    def normal(self, move: Tensor) -> Tensor:
        """Both, one after the other."""
        return self.back(self.forth(move))

    def curvature(self, move: Tensor) -> float:
        """By how much the squares grow along a move, for its own square."""
        return float(self.forth(move).square().sum() / move.square().sum().clamp_min(1e-30))


def levenberg_marquardt(
    residual: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    iterations: int,
    damping: float = _DAMPING,
    settled: float = _SETTLED,
    precondition: Callable[[Linearised], Precondition] | None = None,
) -> Tensor:
    """A smaller sum of squares than at the start.

    A step that gains nothing is solved again with more damping; all solves together make no more iterations than
    ``steps`` times ``iterations``, by which callers count what it takes.

    Args:
        residual: Differentiable twice.
        start: Of the variables.
        steps: How many are made at most.
        iterations: Of conjugate gradients in each solve at most.
        damping: At first, as a share of the mean curvature.
        settled: What conjugate gradients leave, relative, where they end.
        precondition: Given the function near a point: nearly the inverse of its normal matrix there.
    """
    found, left = start, steps * iterations
    random = torch.Generator().manual_seed(0)
    for _ in range(steps):
        near = Linearised(residual, found)
        probe = torch.randn(found.shape, generator=random)
        curvature = near.curvature(probe)
        square, slope = float(near.value.square().sum()), near.back(near.value)
        preconditioned = None if precondition is None else precondition(near)
        part = 0.0
        while part == 0 and damping <= _MOST_DAMPING and left > 0:
            step = _step(near, slope, damping * curvature, min(iterations, left), settled, preconditioned)
            # Its line search counts too.
            left -= max(step.made, 1)
            move = step.solution
            best, part = _best_part(residual, found, move, square)
            if part == 0:
                damping *= 10
        if part == 0:
            break
        found = (found + part * move).detach()
        if part == 1 and best < _GOOD * square:
            damping *= _LESS
        elif part < 1:
            damping *= _MORE
    return found


def _step(
    near: Linearised, slope: Tensor, damping: float, iterations: int, settled: float, precondition: Precondition | None
) -> Descended:
    return conjugate_gradients(
        lambda move: near.normal(move) + damping * move, -slope, iterations, settled, None, precondition
    )


def _best_part(residual: Callable[[Tensor], Tensor], found: Tensor, move: Tensor, square: float) -> tuple[float, float]:
    """The least sum of squares along a move, and the part of the move that has it."""
    tried = [(square, 0.0)]
    for part in _PARTS:
        tried.append((float(residual(found + part * move).detach().square().sum()), part))
        if tried[-1][0] < _TAKEN * square:
            break
    return min(tried)

"""A function near a point: what its derivative makes of a move, and of a vector on the other side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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


def conjugate_gradients(normal: Callable[[Tensor], Tensor], right: Tensor, iterations: int, settled: float) -> Tensor:
    """The solution of normal equations, from zero.

    Args:
        normal: What the matrix makes of a vector.
        right: The right side.
        iterations: At most.
        settled: Share of the right side's length at which it ends.
    """
    found, left = torch.zeros_like(right), right.clone()
    search, square = left.clone(), (left * left).sum()
    limit = settled**2 * square
    for _ in range(iterations):
        if not square > limit:
            break
        image = normal(search)
        length = square / (search * image).sum()
        found = found + length * search
        left = left - length * image
        following = (left * left).sum()
        search = left + following / square * search
        square = following
    return found

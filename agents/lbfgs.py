"""L-BFGS on one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from .optimiser import require_shape

_HISTORY = 20
# Pairs whose curvature is lost in rounding would make the approximation indefinite.
_LEAST_CURVATURE = 1e-10


class Lbfgs:
    """Nocedal 1980 with a fixed step length and no line search, as the authors of DLG run it: one derivative a step.

    The first step is ``min(1, 1 / ||g||_1)`` of the derivative, as in ``torch.optim.LBFGS``, which does the same (a
    test compares them) but keeps its state in lists and its first use imports the compiler; see `Adam`.

    Args:
        variables: Descended in place.
    """

    names = frozenset({"moves", "changes", "derivative", "move"})

    def __init__(self, variables: Tensor) -> None:
        self.steps = 0
        nothing = torch.zeros(0, variables.numel(), dtype=variables.dtype, device=variables.device)
        self._moves, self._changes = nothing, nothing.clone()
        self._derivative = torch.zeros_like(variables).flatten()
        self._move = self._derivative.clone()

    @torch.no_grad()
    def step(self, variables: Tensor, derivative: Tensor, learning_rate: float) -> None:
        """Move ``variables`` by one step, ``learning_rate`` times the quasi-Newton step."""
        flat = derivative.flatten()
        length = learning_rate
        if self.steps:
            self._remember(flat - self._derivative)
        else:
            length *= min(1.0, 1.0 / max(float(flat.abs().sum()), 1e-30))
        self.steps += 1
        self._derivative = flat.clone()
        self._move = length * self._direction(flat)
        variables.add_(self._move.view_as(variables))

    def _remember(self, change: Tensor) -> None:
        if change @ self._move > _LEAST_CURVATURE * change.norm() * self._move.norm():
            self._moves = torch.cat([self._moves, self._move[None]])[-_HISTORY:]
            self._changes = torch.cat([self._changes, change[None]])[-_HISTORY:]

    def _direction(self, derivative: Tensor) -> Tensor:
        """Minus the inverse Hessian's approximation times the derivative: the two-loop recursion."""
        pairs = list(zip(self._moves, self._changes, strict=True))
        direction, shares = -derivative, []
        for move, change in reversed(pairs):
            shares.append((move @ direction) / (change @ move))
            direction = direction - shares[-1] * change
        if pairs:
            move, change = pairs[-1]
            direction = direction * ((change @ move) / (change @ change))
        for (move, change), share in zip(pairs, reversed(shares), strict=True):
            direction = direction + (share - (change @ direction) / (change @ move)) * move
        return direction

    def state(self) -> dict[str, Tensor]:
        """See `Optimiser`."""
        tensors = {"moves": self._moves, "changes": self._changes, "derivative": self._derivative, "move": self._move}
        return {name: tensor.cpu().clone() for name, tensor in tensors.items()}

    def require_fit(self, state: dict[str, Tensor]) -> None:
        """See `Optimiser`."""
        size = self._move.numel()
        pairs = min(len(state["moves"]), _HISTORY) if state["moves"].dim() else 0
        for name, shape in {
            "moves": (pairs, size),
            "changes": (pairs, size),
            "derivative": (size,),
            "move": (size,),
        }.items():
            require_shape(f"this state's {name}", state[name], shape)

    def restore(self, state: dict[str, Tensor], steps: int) -> None:
        """See `Optimiser`."""
        found = {name: state[name].to(self._move.device, self._move.dtype, copy=True) for name in self.names}
        self._moves, self._changes = found["moves"], found["changes"]
        self._derivative, self._move, self.steps = found["derivative"], found["move"], steps

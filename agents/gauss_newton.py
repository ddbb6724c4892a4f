"""Gauss-Newton steps: the end of a descent where nothing but equations is left to be met."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .optimiser import require_shape

# Conjugate gradients in one step: about the work of one step of Adam on the objective.
_ITERATIONS = 2
# Conjugate gradients on one linearisation: at first, at least and at most.
_FIRST, _LEAST, _MOST = 25, 10, 400
# A linearisation that promises to leave less than this share of the sum of squares has been used up.
_USED_UP = 1e-6
# The share of the promised decrease from which a linearisation is trusted for longer, and below which for less long.
_TRUSTED, _DOUBTED = 0.5, 0.25
# The smallest part of a move that is tried.
_SMALLEST = 1 / 32
# Damping after a move that was no help, as a share of the curvature along the derivative; ten times more each time.
_DAMPING = 1e-5
_GIVE_UP = 7
# Steps within which the sum of squares must fall to this share, or it has stalled; and the share of what it was at
# first, and its root, that must be left then for the equations to be at fault. Less is noise: it is met soon too, but a
# descent would leave no less of it.
_PATIENCE, _FALLS, _MUCH, _FAULT = 50, 0.8, 0.25, 0.02
# How far a variable is moved to see whether it is at a bound.
_PROBE = 1e-3
# The tensors of a state that have the shape of the variables, and its counters.
_TENSORS, _COUNTERS = ("finish_move", "finish_left", "finish_search"), "finish_counters"
# Root of the sum of squares of relative residuals that rounding to float32 leaves.
_ROUNDING = 1e-6


class GaussNewton:
    """Levenberg 1944 and Marquardt 1963 on the sum of squares of a residual, with the linear least squares of each
    linearisation left to conjugate gradients (Hestenes & Stiefel 1952), which need products with the Jacobian only.

    A ReLU network is linear between the places where a unit opens or shuts. A linearisation is kept for as many
    iterations as it has proved good for: while units still change it is renewed soon, and once they are right
    conjugate gradients run long enough to meet the equations to rounding, which no first-order method does.

    Args:
        residual: Of the variables, one vector; differentiable twice.
        confine: Brings variables back to where they are allowed, in place.
        variables: Descended in place. They stay where they are while a linearisation is worked on.
    """

    names = frozenset({*_TENSORS, _COUNTERS})

    def __init__(
        self,
        residual: Callable[[Tensor], Float[Tensor, " equations"]],
        confine: Callable[[Tensor], None],
        variables: Tensor,
    ) -> None:
        self._residual, self._confine = residual, confine
        self._products: _Products | None = None
        # The move so far, what it leaves of the normal equations, and the direction that is searched next.
        self._move = torch.zeros_like(variables)
        self._left, self._search, self._free = self._move.clone(), self._move.clone(), torch.ones_like(self._move)
        self._made, self._length, self._failures = 0, _FIRST, 0
        self._damping = self._curvature = self._square = self._promised = 0.0
        # Steps since the sum of squares was last seen to fall, to what, and what it was at first.
        self._since, self._mark, self._first = 0, float("inf"), float("inf")
        self.ended = False
        """Whether steps do nothing any more: the equations are met, or no move has helped for long."""

    @property
    def stalled(self) -> bool:
        """Whether it goes nowhere and has met little: the equations contradict each other, since what they rest on has
        errors, or most units are on the wrong side. A descent with priors does better then.
        """
        still = self.ended or (self._made == 0 and self._since > _PATIENCE)
        return still and not self._square <= max(_MUCH * self._first, _FAULT**2)

    def step(self, variables: Tensor, last: bool) -> None:
        """Two iterations of conjugate gradients, and the move of ``variables`` where the linearisation has been used
        for long enough.

        Args:
            variables: As given at the beginning.
            last: There will be no other step, so that the move is made now.
        """
        if self.ended:
            return
        if self._first == float("inf"):
            with torch.no_grad():
                self._confine(variables)
        if self._products is None:
            self._linearise(variables)
        assert self._products is not None
        for _ in range(_ITERATIONS):
            if self._made < self._length:
                self._iterate(self._products)
        self._since += 1
        if last or self._made >= self._length:
            self._close(variables)

    def _linearise(self, variables: Tensor) -> None:
        products = self._products = _Products(self._residual, variables)
        descent = -products.transposed(products.value)
        # Bertsekas 1982: a variable at its bound that is pushed outwards stays there, or the move is cut off at the
        # bound and the rest of it is worth nothing.
        probe = variables.detach() + _PROBE * descent.sign()
        self._confine(probe)
        self._free = (probe != variables.detach()).to(descent)
        if self._made > 0:  # restored in the middle of a linearisation
            return
        self._square = self._promised = float(products.value.square().sum())
        if self._first == float("inf"):
            self._first = self._square
        self._left = descent * self._free
        self._search, self._move = self._left.clone(), torch.zeros_like(self._left)

    def _iterate(self, products: _Products) -> None:
        square = self._left.square().sum()
        image = products.forward(self._search)
        if self._made == 0:
            self._curvature = float(image.square().sum() / square)
        normal = products.transposed(image).mul_(self._free).add_(self._search, alpha=self._damping * self._curvature)
        share = square / (self._search * normal).sum()
        self._made += 1
        if not bool(torch.isfinite(share)) or share <= 0:  # solved to rounding: there is no direction left
            self._made = self._length
            return
        self._move = self._move + share * self._search
        self._left = self._left - share * normal
        self._promised -= float(share * square)
        if self._promised < _USED_UP * self._square:
            self._made = self._length
            return
        self._search = self._left + self._left.square().sum() / square * self._search

    def _close(self, variables: Tensor) -> None:
        """Move as far as it helps, and judge by the help how long the next linearisation is kept."""
        part, found = 1.0, float("inf")
        while part >= _SMALLEST:
            trial = variables.detach() + part * self._move
            self._confine(trial)
            found = float(self._residual(trial.requires_grad_()).detach().square().sum())
            if found < self._square:
                break
            part /= 2
        promised = max(self._square - self._promised, 1e-300)
        if found < self._square:
            with torch.no_grad():
                variables.copy_(trial)
            gain, self._square = (self._square - found) / promised, found
            self._damping, self._failures = self._damping / 10 if self._damping > _DAMPING else 0.0, 0
        else:
            gain = 0.0
            self._damping, self._failures = max(_DAMPING, 10 * self._damping), self._failures + 1
        if gain > _TRUSTED:
            self._length = min(2 * self._length, _MOST)
        elif gain < _DOUBTED:
            self._length = max(self._length // 2, _LEAST)
        if self._square < _FALLS * self._mark:
            self._mark, self._since = self._square, 0
        self.ended = self._square <= _ROUNDING**2 or self._failures == _GIVE_UP
        self._made, self._products = 0, None

    def state(self) -> dict[str, Tensor]:
        """Copies, on the CPU, of everything that the next step depends on but the variables."""
        counters = [
            float(self._made),
            float(self._length),
            float(self._failures),
            float(self.ended),
            float(self._since),
            self._damping,
            self._curvature,
            self._square,
            self._promised,
            self._mark,
            self._first,
        ]
        tensors = (self._move, self._left, self._search)
        copies = {name: tensor.cpu().clone() for name, tensor in zip(_TENSORS, tensors, strict=True)}
        return {**copies, _COUNTERS: torch.tensor(counters, dtype=torch.float64)}

    def require_fit(self, state: dict[str, Tensor]) -> None:
        """Return quietly when a state belongs to variables of the same shape, and its counters are possible ones.

        Raises:
            ValueError: It does not, or they are not.
        """
        for name in _TENSORS:
            require_shape(f"this state's {name}", state[name], self._move.shape)
        counters = state[_COUNTERS]
        require_shape(f"this state's {_COUNTERS}", counters, (11,))
        if counters.dtype != torch.float64:
            raise ValueError(f"this state's finish_counters are {counters.dtype}, but torch.float64 is wanted.")
        made, length, failures, ended, since, damping = counters.tolist()[:6]
        possible = 0 <= made <= length and _LEAST <= length <= _MOST and 0 <= failures <= _GIVE_UP
        if not (possible and ended in (0, 1) and 0 <= since < float("inf") and 0 <= damping <= 1e12):
            raise ValueError(f"this state's finish_counters are {counters.tolist()}, which no run could have come to.")

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a ``state()`` that fits, with the variables of that time."""
        self._move, self._left, self._search = (state[name].to(self._move, copy=True) for name in _TENSORS)
        made, length, failures, ended, since, *rest = state[_COUNTERS].tolist()
        self._made, self._length, self._failures = int(made), int(length), int(failures)
        self.ended, self._since = bool(ended), int(since)
        self._damping, self._curvature, self._square, self._promised, self._mark, self._first = rest
        self._products = None


class _Products:
    """Products with the Jacobian at one place, and with its transpose.

    The product with the Jacobian is the derivative of the transposed one by what it is applied to, in which it is
    linear: two derivatives backwards, which every operation of torch has.
    """

    def __init__(self, residual: Callable[[Tensor], Tensor], variables: Tensor) -> None:
        self._at = variables.detach().clone().requires_grad_()
        with torch.enable_grad():
            self._value = residual(self._at)
            self._weights = torch.zeros_like(self._value, requires_grad=True)
            (self._pulled,) = torch.autograd.grad(self._value, self._at, self._weights, create_graph=True)
        self.value = self._value.detach()

    def transposed(self, vector: Tensor) -> Tensor:
        """The Jacobian's transpose times a vector of equations, in the shape of the variables."""
        return torch.autograd.grad(self._value, self._at, vector, retain_graph=True)[0]

    def forward(self, direction: Tensor) -> Tensor:
        """The Jacobian times a direction of the variables."""
        return torch.autograd.grad(self._pulled, self._weights, direction, retain_graph=True)[0]

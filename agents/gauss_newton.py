"""Gauss-Newton steps: the end of a descent where nothing but equations is left to be met."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .gauss_newton_state import GIVE_UP, LEAST, MOST, GaussNewtonState

# Conjugate gradients in one step: about the work of one step of Adam on the objective.
_ITERATIONS = 2
# A linearisation that promises to leave less than this share of the sum of squares has been used up.
_USED_UP = 1e-6
# The share of the promised decrease from which a linearisation is trusted for longer, and below which for less long.
_TRUSTED, _DOUBTED = 0.5, 0.25
# The smallest part of a move that is tried.
_SMALLEST = 1 / 32
# Damping after a move that was no help, as a share of the curvature along the derivative; ten times more each time.
_DAMPING = 1e-5
# Steps within which the sum of squares must fall to this share, or it has stalled; and the share of what it was at
# first, and its root, that must be left then for the equations to be at fault. Less is noise: it is met soon too, but a
# descent would leave no less of it.
_PATIENCE, _FALLS, _MUCH, _FAULT = 50, 0.8, 0.25, 0.02
# How far a variable is moved to see whether it is at a bound.
_PROBE = 1e-3
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
        state: To continue from, with the variables of that time; None to begin.
    """

    def __init__(
        self,
        residual: Callable[[Tensor], Float[Tensor, " equations"]],
        confine: Callable[[Tensor], None],
        variables: Tensor,
        state: GaussNewtonState | None = None,
    ) -> None:
        self._residual, self._confine = residual, confine
        self._state = GaussNewtonState.at_start(variables) if state is None else state
        # Made again where a state is restored in the middle of a linearisation.
        self._products: _Products | None = None
        self._free = torch.ones_like(variables)

    @property
    def ended(self) -> bool:
        """Whether steps do nothing any more: the equations are met, or no move has helped for long."""
        return self._state.ended

    @property
    def stalled(self) -> bool:
        """Whether it goes nowhere and has met little: the equations contradict each other, since what they rest on has
        errors, or most units are on the wrong side. A descent with priors does better then.
        """
        state = self._state
        still = state.ended or (state.made == 0 and state.since > _PATIENCE)
        return still and not state.square <= max(_MUCH * state.first, _FAULT**2)

    def step(self, variables: Tensor, last: bool) -> None:
        """Two iterations of conjugate gradients, and the move of ``variables`` where the linearisation has been used
        for long enough.

        Args:
            variables: As given at the beginning.
            last: There will be no other step, so that the move is made now.
        """
        state = self._state
        if state.ended:
            return
        if state.first == float("inf"):
            with torch.no_grad():
                self._confine(variables)
        if self._products is None:
            self._linearise(variables)
        assert self._products is not None
        for _ in range(_ITERATIONS):
            if state.made < state.length:
                self._iterate(self._products)
        state.since += 1
        if last or state.made >= state.length:
            self._close(variables)

    def _linearise(self, variables: Tensor) -> None:
        state = self._state
        products = self._products = _Products(self._residual, variables)
        descent = -products.transposed(products.value)
        # Bertsekas 1982: a variable at its bound that is pushed outwards stays there, or the move is cut off at the
        # bound and the rest of it is worth nothing.
        probe = variables.detach() + _PROBE * descent.sign()
        self._confine(probe)
        self._free = (probe != variables.detach()).to(descent)
        if state.made > 0:  # restored in the middle of a linearisation
            return
        state.square = state.promised = float(products.value.square().sum())
        if state.first == float("inf"):
            state.first = state.square
        state.left = descent * self._free
        state.search, state.move = state.left.clone(), torch.zeros_like(state.left)

    def _iterate(self, products: _Products) -> None:
        state = self._state
        square = state.left.square().sum()
        image = products.forward(state.search)
        if state.made == 0:
            state.curvature = float(image.square().sum() / square)
        normal = products.transposed(image).mul_(self._free).add_(state.search, alpha=state.damping * state.curvature)
        share = square / (state.search * normal).sum()
        state.made += 1
        if not bool(torch.isfinite(share)) or share <= 0:  # solved to rounding: there is no direction left
            state.made = state.length
            return
        state.move = state.move + share * state.search
        state.left = state.left - share * normal
        state.promised -= float(share * square)
        if state.promised < _USED_UP * state.square:
            state.made = state.length
            return
        state.search = state.left + state.left.square().sum() / square * state.search

    def _close(self, variables: Tensor) -> None:
        """Move as far as it helps, and judge by the help how long the next linearisation is kept."""
        state = self._state
        part, found = 1.0, float("inf")
        while part >= _SMALLEST:
            trial = variables.detach() + part * state.move
            self._confine(trial)
            found = float(self._residual(trial.requires_grad_()).detach().square().sum())
            if found < state.square:
                break
            part /= 2
        promised = max(state.square - state.promised, 1e-300)
        if found < state.square:
            with torch.no_grad():
                variables.copy_(trial)
            gain, state.square = (state.square - found) / promised, found
            state.damping, state.failures = state.damping / 10 if state.damping > _DAMPING else 0.0, 0
        else:
            gain = 0.0
            state.damping, state.failures = max(_DAMPING, 10 * state.damping), state.failures + 1
        if gain > _TRUSTED:
            state.length = min(2 * state.length, MOST)
        elif gain < _DOUBTED:
            state.length = max(state.length // 2, LEAST)
        if state.square < _FALLS * state.mark:
            state.mark, state.since = state.square, 0
        state.ended = state.square <= _ROUNDING**2 or state.failures == GIVE_UP
        state.made, self._products = 0, None

    def state(self) -> dict[str, Tensor]:
        """Copies, on the CPU, of everything that the next step depends on but the variables; see `STATE_NAMES`."""
        return self._state.tensors()


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

"""The fixed point of a convolution's input and the batch statistics that it makes.

The input follows by linear equations from what enters the batch norm behind (about its mean and of variance 1) and its
deviations (see `statistics_equations`), and these follow from the input by running the convolution. The share of what
enters is small, so that each round leaves a tenth of the error or less; beside a 1x1 convolution with a stride it is
three quarters, and Anderson's acceleration takes over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..layers import relative
from .equations import OVERDETERMINED, deviant
from .statistics_equations import Found, Reader, solve_given

# Earlier rounds that acceleration looks at, and by how much more a deviation counts than an activation.
_REMEMBERED, _HEAVIER = 6, 30.0
# Rounds end where what enters moves less than this, or where so many have gained next to nothing.
_SETTLED, _PATIENCE, _GAINED = 2e-8, 4, 0.97
# Deviations are told by the equations themselves where these are so many times the unknowns, or of several
# convolutions.
_PLENTY = 1.9
# Channels are left out where more than this is left of all equations, in so many turns at most.
_CLEAN, _LEFT_OUT = 2e-6, 6


@dataclass(frozen=True)
class State:
    """Where the rounds stand."""

    values: Float[Tensor, "image channel height width"]
    """The input, of root mean square ``scale``."""
    entering: tuple[Tensor, ...]
    """What enters each batch norm, about its mean and of variance 1."""
    deviations: tuple[Tensor, ...] | None
    """sigma of each channel, up to one factor; None before the first round."""
    scale: float
    """Root mean square of the input, which eps is held against."""
    found: Found | None = None
    """The last solution; None before the first."""
    unit: float = 1.0
    """By what that solution was multiplied."""
    rounds: int = 0


def begin(readers: Sequence[Reader], shape: tuple[int, ...]) -> State:
    """Nothing is known but what was told.

    Args:
        readers: Convolutions that read the value.
        shape: Of the value, with the images.
    """
    rows, places = sum(one.rows for one in readers), shape[0] * shape[2] * shape[3]
    told = len(readers) > 1 or rows > _PLENTY * places
    # Of an input without structure the deviation of a channel is the length of its weight.
    white = None if told else tuple(one.weight.flatten(1).norm(dim=1) for one in readers)
    nothing = torch.zeros(shape, dtype=torch.float64)
    return State(nothing, tuple(one.first() for one in readers), white, 1.0)


def rounds(readers: Sequence[Reader], state: State, levels: Sequence[Tensor], most: int) -> State | None:
    """Up to so many rounds on from a state; None where the equations do not determine the input.

    Args:
        readers: Convolutions that read the value.
        state: Where to go on.
        levels: Classes of places whose level is in no equation.
        most: Rounds.
    """
    shape, history = state.values.shape, _History()
    misfits = list[float]()
    for _ in range(most):
        found = solve_given(readers, state.entering, state.deviations, (shape[2], shape[3]), levels)
        if found is None:
            return None
        grid = found.values.reshape(shape[0], *shape[2:], -1).permute(0, 3, 1, 2).contiguous()
        factor = state.scale / float(grid.square().mean().sqrt().clamp_min(1e-300))
        values = grid * factor
        made = [one.followed(values) for one in readers]
        entering, deviations = tuple(one.values for one in made), tuple(one.deviation for one in made)
        moved = max(relative(new - old, old) for new, old in zip(entering, state.entering, strict=True))
        misfits.append(found.misfit)
        after = _packed(deviations, entering)
        if state.deviations is not None:
            after = history.accelerated(_packed(state.deviations, state.entering), after)
        deviations, entering = _unpacked(after, deviations, entering)
        state = State(values, entering, deviations, state.scale, found, factor, state.rounds + 1)
        stuck = len(misfits) > 3 * _PATIENCE and not found.misfit <= _GAINED * max(misfits[-1 - _PATIENCE : -1])
        if moved <= _SETTLED or stuck:
            break
    return state


def agreeing(
    readers: Sequence[Reader], state: State, levels: Sequence[Tensor], most: int
) -> tuple[Sequence[Reader], State] | None:
    """Rounds without the output channels whose equations are off by much more than the others', until no others are.

    One unit on the wrong side of a rectifier spoils all equations of its channel.

    Args:
        readers: Convolutions that read the value.
        state: Where to go on.
        levels: Classes of places whose level is in no equation.
        most: Rounds, each time.

    Returns:
        The convolutions with the channels that were kept, and where they lead; None where the equations do not
        determine the input.
    """
    places = state.values.shape[0] * state.values.shape[2] * state.values.shape[3]
    following = rounds(readers, state, levels, most)
    for _ in range(_LEFT_OUT):
        if following is None or following.found is None or following.found.misfit <= _CLEAN:
            break
        kept = [~deviant(off, torch.ones_like(off)) for off in following.found.off]
        fewer = [one.of_outputs(some) for one, some in zip(readers, kept, strict=True)]
        few = sum(one.rows for one in fewer) < OVERDETERMINED * places
        if few or all(bool(some.all()) for some in kept) or any(not bool(some.any()) for some in kept):
            break
        entering = tuple(one[:, some] for one, some in zip(following.entering, kept, strict=True))
        assert following.deviations is not None
        deviations = tuple(one[some] for one, some in zip(following.deviations, kept, strict=True))
        readers = fewer
        following = rounds(readers, replace(following, entering=entering, deviations=deviations), levels, most)
    return None if following is None else (readers, following)


def _packed(deviations: Sequence[Tensor], entering: Sequence[Tensor]) -> Tensor:
    # Their common factor is free.
    logarithms = torch.cat([one.log() for one in deviations])
    logarithms = logarithms - logarithms.mean()
    return torch.cat([_HEAVIER * logarithms, *(one.flatten() for one in entering)])


def _unpacked(
    packed: Tensor, deviations: Sequence[Tensor], entering: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    sizes = [one.numel() for one in (*deviations, *entering)]
    parts = torch.split(packed, sizes)
    count = len(deviations)
    logarithms = [part / _HEAVIER for part in parts[:count]]
    shaped = tuple(part.reshape(like.shape) for part, like in zip(parts[count:], entering, strict=True))
    return tuple(one.exp() for one in logarithms), shaped


@dataclass
class _History:
    """Anderson's acceleration of a fixed point."""

    befores: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)

    def accelerated(self, before: Tensor, after: Tensor) -> Tensor:
        """The point where the steps of the last rounds, mixed, would end."""
        self.befores, self.steps = [*self.befores, before][-_REMEMBERED:], [*self.steps, after - before][-_REMEMBERED:]
        if len(self.steps) < 2:
            return after
        changes = torch.stack([new - old for old, new in zip(self.steps, self.steps[1:], strict=False)], dim=1)
        moves = torch.stack([new - old for old, new in zip(self.befores, self.befores[1:], strict=False)], dim=1)
        shares = torch.linalg.lstsq(changes, self.steps[-1][:, None], driver="gelsd").solution
        return after - ((moves + changes) @ shares)[:, 0]

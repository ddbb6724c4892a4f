"""All that the next Gauss-Newton step depends on but the variables, and how a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .optimiser import require_shape

FIRST = 25
"""Conjugate gradients on the first linearisation."""
LEAST, MOST = 10, 400
"""Conjugate gradients on one linearisation, at least and at most."""
GIVE_UP = 7
"""Moves one after the other that were no help, after which no other is tried."""

# In a checkpoint each tensor has this before its name, and all numbers are one tensor.
_PREFIX = "finish_"
_COUNTERS = f"{_PREFIX}counters"
_MOST_DAMPING = 1e12


@dataclass
class GaussNewtonState:
    """The fields without a default have the shape of the variables; a checkpoint holds the numbers in their order."""

    move: Tensor
    """The move so far on this linearisation."""
    left: Tensor
    """What the move leaves of the normal equations."""
    search: Tensor
    """The direction that is searched next."""
    made: int = 0
    """Conjugate gradients made on this linearisation."""
    length: int = FIRST
    """Conjugate gradients that it is kept for."""
    failures: int = 0
    """Moves that were no help since the last that was."""
    ended: bool = False
    """Whether steps do nothing any more: the equations are met, or no move has helped for long."""
    since: int = 0
    """Steps since the sum of squares was last seen to fall to less than a share of ``mark``."""
    damping: float = 0.0
    """As a share of ``curvature``."""
    curvature: float = 0.0
    """Along the derivative, where the linearisation begins."""
    square: float = 0.0
    """The sum of squares at the variables."""
    promised: float = 0.0
    """The sum of squares that the linearisation promises after the move."""
    mark: float = float("inf")
    """What the sum of squares was when it was last seen to fall."""
    first: float = float("inf")
    """What the sum of squares was at first."""

    @classmethod
    def at_start(cls, variables: Tensor) -> GaussNewtonState:
        """Before the first step of these variables."""
        move, left, search = (torch.zeros_like(variables) for _ in range(3))
        return cls(move, left, search)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], variables: Tensor) -> GaussNewtonState:
        """The state in a checkpoint that has all of `STATE_NAMES`.

        Args:
            tensors: Of the checkpoint; copied.
            variables: Whose state it must be.

        Raises:
            ValueError: It belongs to variables of another shape, or no run could have come to its numbers.
        """
        for name in _TENSORS:
            require_shape(f"this state's {_PREFIX}{name}", tensors[_PREFIX + name], variables.shape)
        counters = tensors[_COUNTERS]
        require_shape(f"this state's {_COUNTERS}", counters, (len(_NUMBERS),))
        if counters.dtype != torch.float64:
            raise ValueError(f"this state's {_COUNTERS} are {counters.dtype}, but torch.float64 is wanted.")
        numbers = dict(zip(_NUMBERS, counters.tolist(), strict=True))
        if not _possible(numbers):
            raise ValueError(f"this state's {_COUNTERS} are {counters.tolist()}, which no run could have come to.")
        kept: dict[str, Any] = {name: tensors[_PREFIX + name].to(variables, copy=True) for name in _TENSORS}
        kept |= {name: type(_NUMBERS[name])(value) for name, value in numbers.items()}
        return cls(**kept)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of everything, on the CPU."""
        numbers = [float(getattr(self, name)) for name in _NUMBERS]
        copies = {_PREFIX + name: getattr(self, name).cpu().clone() for name in _TENSORS}
        return {**copies, _COUNTERS: torch.tensor(numbers, dtype=torch.float64)}


_NUMBERS = {field.name: field.default for field in fields(GaussNewtonState) if isinstance(field.default, int | float)}
"""Each number with its default, in order."""
_TENSORS = tuple(field.name for field in fields(GaussNewtonState) if field.name not in _NUMBERS)
STATE_NAMES = frozenset({*(_PREFIX + name for name in _TENSORS), _COUNTERS})
"""Of the tensors of a state in a checkpoint."""


def _possible(numbers: Mapping[str, float]) -> bool:
    """Whether a run could have come to these numbers."""
    return (
        0 <= numbers["made"] <= numbers["length"]
        and LEAST <= numbers["length"] <= MOST
        and 0 <= numbers["failures"] <= GIVE_UP
        and numbers["ended"] in (0, 1)
        and 0 <= numbers["since"] < float("inf")
        and 0 <= numbers["damping"] <= _MOST_DAMPING
    )

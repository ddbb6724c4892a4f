"""What an agent needs of an optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Optimiser(Protocol):
    """Descends one tensor in place; its state is plain tensors, for a checkpoint."""

    steps: int
    """Made so far."""
    names: frozenset[str]
    """Of the tensors of a state."""

    def step(self, variables: Tensor, derivative: Tensor, learning_rate: float) -> None:
        """Move ``variables`` by one step."""

    def state(self) -> dict[str, Tensor]:
        """Copies, on the CPU, of everything that the next step depends on but the count of steps."""

    def require_fit(self, state: dict[str, Tensor]) -> None:
        """Return quietly when a state belongs to variables of the same shape.

        Raises:
            ValueError: It does not.
        """

    def restore(self, state: dict[str, Tensor], steps: int) -> None:
        """Continue from a ``state()`` that fits."""


def require_shape(what: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Refuse a tensor of another shape: torch would repeat one image for the whole batch without a word."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{what} has shape {tuple(tensor.shape)}, but {tuple(shape)} is wanted.")

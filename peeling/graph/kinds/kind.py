"""What a kind of operation is: its closed form, and what has to be known to carry a derivative through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor


class Needs(Enum):
    """What an operation's derivative depends on."""

    NOTHING = "nothing"
    """It is linear, or a constant away from that."""
    OUTPUT = "output"
    INPUTS = "inputs"
    UNKNOWN = "unknown"
    """It has no closed form here."""


@dataclass(frozen=True)
class Kind:
    """One operation between values of the images; values have the batch in front.

    A subclass gives `forward`. Everything else follows from it by differentiation, exactly: an operation that needs
    nothing has the same derivative at every input, so that zeros serve.
    """

    needs: ClassVar[Needs] = Needs.NOTHING

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """The output.

        Args:
            inputs: Values that enter, in order.
            tensors: The model's parameters and buffers by their role, such as ``weight``, in the type of the values.
        """
        raise NotImplementedError

    def cotangents(self, arriving: Tensor, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Derivatives of the loss by each input, as far as they come through this operation.

        Args:
            arriving: Derivative by the output.
            inputs: Values that enter; any numbers of the right shape where the operation needs nothing.
            tensors: See `forward`.
        """
        entering = [value.detach().requires_grad_() for value in inputs]
        with torch.enable_grad():
            output = self.forward(entering, tensors)
            return list(torch.autograd.grad(output, entering, arriving, allow_unused=True, materialize_grads=True))

    def gradients(
        self, arriving: Tensor, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor], roles: Sequence[str]
    ) -> list[Tensor]:
        """Derivatives of the loss by the parameters of these roles."""
        if not roles:
            return []
        free = {role: tensors[role].detach().requires_grad_() for role in roles}
        with torch.enable_grad():
            output = self.forward([value.detach() for value in inputs], {**tensors, **free})
            return list(
                torch.autograd.grad(output, list(free.values()), arriving, allow_unused=True, materialize_grads=True)
            )


@dataclass(frozen=True)
class Call:
    """One operation of an exported model, as a reader of kinds sees it."""

    arguments: Mapping[str, Any]
    """By their names in the operation's schema, with its defaults. What is a tensor stands as the name of its node."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of each tensor by the name of its node; of values of the images without the batch."""
    output: tuple[int, ...]
    """Of the result, without the batch."""


@dataclass(frozen=True)
class Read:
    """What a reader made of a call."""

    kind: Kind
    inputs: tuple[str, ...]
    """Names of the nodes whose values enter."""
    tensors: Mapping[str, str]
    """Names of the nodes that hold parameters or buffers, by their role."""


def tensors_of(call: Call, **roles: str) -> dict[str, str]:
    """Those of the roles that the call has, each taken from the argument named."""
    return {role: call.arguments[name] for role, name in roles.items() if call.arguments.get(name) is not None}


def pair(value: Sequence[int] | int) -> tuple[int, int]:
    """Height and width of a setting that may be given as one number."""
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])

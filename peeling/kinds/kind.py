"""A kind of operation: its closed form, what has to be known to carry a derivative through it, and the way back.

One kind serves an operation of a graph, read from an exported model, and a layer of the straight chain, read from its
module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..layers import Equations, Solved
from ..units import Units


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

    A subclass gives `forward`. Derivatives follow from it by differentiation, exactly: an operation that needs nothing
    has the same derivative at every input, so that zeros serve. A way back from the output to the input it gives where
    there is one: `inverse`, if the output alone tells the input; `units`, if it does where it passed the input on;
    `solve`, if it takes the gradient by a weight.
    """

    needs: ClassVar[Needs] = Needs.NOTHING
    keeps_numbers: ClassVar[bool] = False
    """The output is the input, in the same order."""
    keeps_derivatives: ClassVar[bool] = False
    """The derivative by each input is that by the output, in the same order."""
    bias_axis: ClassVar[int] = 1
    """Along which the output has one entry of the bias for each place, if it has a bias."""
    solvable: ClassVar[bool] = False
    """Whether there is `solve`."""

    @property
    def has_taps(self) -> bool:
        """Whether the gradient by the weight is one product of input and derivative for each shift of a kernel."""
        return False

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

    def seen(self, inputs: Sequence[Tensor], output: Tensor) -> list[Tensor]:
        """What `cotangents` is given in the place of the inputs: as much as the operation needs, and no more."""
        if self.needs is Needs.INPUTS:
            return list(inputs)
        if self.needs is Needs.OUTPUT:
            return [output.detach()]
        return [torch.zeros_like(value) for value in inputs]

    def inverse(
        self, values: Tensor, spread: Tensor, tensors: Mapping[str, Tensor], others: Sequence[Told] = ()
    ) -> Told | None:
        """What enters, told by what leaves; None where that does not tell it.

        Args:
            values: The output.
            spread: Of its errors, of the same shape.
            tensors: See `forward`; they may be of another type than the values.
            others: What is known of the other inputs.
        """
        return Told(values, torch.ones_like(values, dtype=torch.bool), spread) if self.keeps_numbers else None

    def split(self, values: Tensor, channels: Sequence[int]) -> list[Tensor] | None:
        """Every input, where the output is nothing but all of them side by side; None where it is not.

        Args:
            values: Numbers for each entry of the output.
            channels: Of each input.
        """
        return None

    def carried(self, arriving: Tensor, spread: Tensor, tensors: Mapping[str, Tensor]) -> Told | None:
        """The derivative by the output, told by that by an input; None where that does not tell it.

        Args:
            arriving: Derivative by an input that nothing else reads.
            spread: Of its errors, of the same shape.
            tensors: See `inverse`.
        """
        return Told(arriving, torch.ones_like(arriving, dtype=torch.bool), spread) if self.keeps_derivatives else None

    def is_open(self, output: Tensor) -> Tensor:
        """Where the operation passes its input on: everywhere, but where the derivative needs the output."""
        return torch.ones_like(output, dtype=torch.bool)

    def held(self, output: Tensor) -> Tensor:
        """What the output is wherever the operation does not pass its input on, of the values that it may be there the
        nearest one."""
        return torch.zeros_like(output)

    def units(self, output: Tensor, uncertainty: Tensor) -> Units | None:
        """Where the operation passed its input on, by an output that is known up to an error; None where the output
        does not tell.

        Args:
            output: With the errors: it may have values that the operation cannot give.
            uncertainty: The largest error to be expected of each.
        """
        return None

    def solve(self, equations: Equations) -> Solved:
        """The input, by the gradient of the weight."""
        raise NotImplementedError

    @classmethod
    def of_module(cls, call: ModuleCall) -> Layer | None:
        """What a module does, if that is this kind's closed form."""
        raise NotImplementedError


@dataclass(frozen=True)
class Told:
    """Numbers on one side of an operation, as far as those on the other side tell them."""

    values: Tensor
    """In the shape of either side."""
    heard: Tensor
    """False where the other side says nothing of it; it broadcasts with the values."""
    spread: Tensor
    """Of the values' errors."""


@dataclass(frozen=True)
class ModuleCall:
    """One call of a leaf module."""

    module: nn.Module
    batch_statistics: bool
    """Whether batch norm was run on the batch's own statistics."""
    output: tuple[int, ...]
    """Shape of the result, without the batch."""


@dataclass(frozen=True)
class Layer:
    """What was made of a module."""

    kind: Kind
    tensors: Mapping[str, str] = field(default_factory=dict)
    """The module's attributes that hold parameters or buffers, by their role."""


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


def has_own_weight(module: nn.Module) -> bool:
    """Whether its weight is a parameter, and not computed from others."""
    return isinstance(module._parameters.get("weight"), nn.Parameter)


def attributes_of(module: nn.Module, **roles: str) -> dict[str, str]:
    """Those of the roles that the module has, each in the attribute named."""
    return {role: name for role, name in roles.items() if getattr(module, name) is not None}


def tensors_of(call: Call, **roles: str) -> dict[str, str]:
    """Those of the roles that the call has, each taken from the argument named."""
    return {role: call.arguments[name] for role, name in roles.items() if call.arguments.get(name) is not None}


def pair(value: Sequence[int] | int) -> tuple[int, int]:
    """Height and width of a setting that may be given as one number."""
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])

"""ReLU and ReLU6: where the output lies strictly between its ends the operation is the identity, elsewhere constant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..units import Units, estimate_units
from .kind import Call, Kind, Layer, ModuleCall, Needs, Read

# Uncertainties from a ceiling below which an output is not asked whether it was held back.
_NEAR = 20.0


@dataclass(frozen=True)
class Rectifier(Kind):
    """``y = min(max(x, 0), ceiling)``."""

    ceiling: float = math.inf
    needs = Needs.OUTPUT

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return inputs[0].clamp(0, None if self.ceiling == math.inf else self.ceiling)

    def is_open(self, output: Tensor) -> Tensor:
        """See `Kind.is_open`."""
        return (output > 0) & (output < self.ceiling)

    def cotangents(self, arriving: Tensor, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """See `Kind.cotangents`; the output serves as the input."""
        return [arriving * self.is_open(self.forward(inputs, tensors))]

    def units(self, output: Tensor, uncertainty: Tensor) -> Units | None:
        """See `Kind.units`; at a ceiling what is missing to it is the output of a ReLU too."""
        units = estimate_units(output, uncertainty)
        if self.ceiling == math.inf or not bool((output > self.ceiling - _NEAR * uncertainty).any()):
            return units
        return units.both(estimate_units(self.ceiling - output, uncertainty))

    def held(self, output: Tensor) -> Tensor:
        """See `Kind.held`."""
        ends = torch.zeros_like(output)
        return ends if self.ceiling == math.inf else ends.masked_fill(output > self.ceiling / 2, self.ceiling)

    @classmethod
    def of_module(cls, call: ModuleCall) -> Layer | None:
        """``nn.ReLU``."""
        return Layer(cls())


def read_relu(call: Call) -> Read | None:
    """``aten.relu``."""
    return Read(Rectifier(), (call.arguments["self"],), {})


def read_relu6(call: Call) -> Read | None:
    """``aten.relu6``."""
    return Read(Rectifier(6.0), (call.arguments["self"],), {})


def read_clamp(call: Call) -> Read | None:
    """``aten.hardtanh``, ``aten.clamp`` and ``aten.clamp_min``, where the lower end is zero."""
    given = call.arguments
    least, most = given.get("min_val", given.get("min")), given.get("max_val", given.get("max"))
    if least != 0 or (most is not None and not most > 0):
        return None
    return Read(Rectifier(math.inf if most is None else float(most)), (given["self"],), {})

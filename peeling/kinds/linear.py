"""A fully connected layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..layers import Equations, Solved
from ..linear import peel_linear
from .kind import Call, Kind, Layer, ModuleCall, Read, attributes_of, has_own_weight, tensors_of


@dataclass(frozen=True)
class Linear(Kind):
    """``y = W x + b``, on the last axis."""

    bias_axis = -1
    solvable = True

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return F.linear(inputs[0], tensors["weight"], tensors.get("bias"))

    def cotangents(self, arriving: Tensor, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """See `Kind.cotangents`."""
        return [arriving @ tensors["weight"]]

    def solve(self, equations: Equations) -> Solved:
        """See `Kind.solve`."""
        return peel_linear(equations)

    @classmethod
    def of_module(cls, call: ModuleCall) -> Layer | None:
        """``nn.Linear``, run on one vector for each image."""
        if len(call.output) != 1 or not has_own_weight(call.module):
            return None
        return Layer(cls(), attributes_of(call.module, weight="weight", bias="bias"))


def read_linear(call: Call) -> Read | None:
    """``aten.linear``."""
    return Read(Linear(), (call.arguments["input"],), tensors_of(call, weight="weight", bias="bias"))

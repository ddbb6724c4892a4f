"""Convolution in two dimensions, with zeros around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..convolution import peel_convolution
from ..geometry import Geometry
from ..layers import Equations, Solved
from .kind import Call, Kind, Layer, ModuleCall, Read, attributes_of, has_own_weight, pair, tensors_of


@dataclass(frozen=True)
class Convolution(Geometry, Kind):
    """``y = W * x + b``."""

    solvable = True

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return F.conv2d(inputs[0], tensors["weight"], tensors.get("bias"), **self.keywords)

    def solve(self, equations: Equations) -> Solved:
        """See `Kind.solve`."""
        return peel_convolution(self, equations)

    @classmethod
    def of_module(cls, call: ModuleCall) -> Layer | None:
        """``nn.Conv2d``, padded with zeros or not at all."""
        module: Any = call.module
        padding = _padding(module.padding, module.kernel_size, module.dilation)
        zeros = padding is not None and (module.padding_mode == "zeros" or padding == (0, 0))
        if padding is None or not zeros or not has_own_weight(module):
            return None
        kind = cls(module.kernel_size, module.stride, padding, module.dilation, module.groups)
        return Layer(kind, attributes_of(module, weight="weight", bias="bias"))


def _padding(
    given: Sequence[int] | int | str, kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int] | None:
    """In numbers, where it may be given by name; None where it is not the same on both sides."""
    if given == "valid":
        return (0, 0)
    if given == "same":
        extents = [step * (side - 1) for side, step in zip(kernel, dilation, strict=True)]
        return None if any(extent % 2 for extent in extents) else (extents[0] // 2, extents[1] // 2)
    assert not isinstance(given, str)
    return pair(given)


def read_convolution(call: Call) -> Read | None:
    """``aten.conv2d``, with its padding in numbers or by name; None where that cannot be said evenly."""
    given = call.arguments
    kernel, dilation = call.shapes[given["weight"]][2:], pair(given["dilation"])
    padding = _padding(given["padding"], kernel, dilation)
    if padding is None or len(call.output) != 3:
        return None
    kind = Convolution((kernel[0], kernel[1]), pair(given["stride"]), padding, dilation, given["groups"])
    return Read(kind, (given["input"],), tensors_of(call, weight="weight", bias="bias"))

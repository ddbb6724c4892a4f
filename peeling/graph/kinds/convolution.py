"""Convolution in two dimensions, with zeros around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .kind import Call, Kind, Read, pair, tensors_of


@dataclass(frozen=True)
class Convolution(Kind):
    """``y = W * x + b``."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return F.conv2d(inputs[0], tensors["weight"], tensors.get("bias"), *geometry)


def read_convolution(call: Call) -> Read | None:
    """``aten.conv2d``, with its padding in numbers or by name; None where that cannot be said evenly."""
    given = call.arguments
    kernel = call.shapes[given["weight"]][2:]
    dilation, padding = pair(given["dilation"]), given["padding"]
    if padding == "valid":
        padding = 0
    elif padding == "same":
        extents = [step * (side - 1) for side, step in zip(kernel, dilation, strict=True)]
        if any(extent % 2 for extent in extents):
            return None
        padding = [extent // 2 for extent in extents]
    if len(call.output) != 3:
        return None
    kind = Convolution((kernel[0], kernel[1]), pair(given["stride"]), pair(padding), dilation, given["groups"])
    return Read(kind, (given["input"],), tensors_of(call, weight="weight", bias="bias"))

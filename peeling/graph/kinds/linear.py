"""A fully connected layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .kind import Call, Kind, Read, tensors_of


@dataclass(frozen=True)
class Linear(Kind):
    """``y = W x + b``, on the last axis."""

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return F.linear(inputs[0], tensors["weight"], tensors.get("bias"))


def read_linear(call: Call) -> Read | None:
    """``aten.linear``."""
    return Read(Linear(), (call.arguments["input"],), tensors_of(call, weight="weight", bias="bias"))

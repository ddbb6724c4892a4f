"""Where paths meet: the sum of two values, and values side by side in their channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .kind import Call, Kind, Read, Told


@dataclass(frozen=True)
class Sum(Kind):
    """``y = x_1 + x_2``: the derivative by either is that by the sum."""

    keeps_derivatives = True

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return inputs[0] + inputs[1]

    def inverse(
        self, values: Tensor, spread: Tensor, tensors: Mapping[str, Tensor], others: Sequence[Told] = ()
    ) -> Told | None:
        """See `Kind.inverse`: one part is what the other leaves of the sum."""
        if len(others) != 1:
            return None
        (other,) = others
        return Told(values - other.values, other.heard, (spread.square() + other.spread.square()).sqrt())


@dataclass(frozen=True)
class Concatenation(Kind):
    """Channels one after another."""

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return torch.cat(list(inputs), dim=1)

    def split(self, values: Tensor, channels: Sequence[int]) -> list[Tensor] | None:
        """See `Kind.split`."""
        return list(torch.split(values, list(channels), dim=1))


def read_sum(call: Call) -> Read | None:
    """``aten.add`` of two values of one shape."""
    given = call.arguments
    one, other = given["self"], given["other"]
    same = isinstance(one, str) and isinstance(other, str) and call.shapes[one] == call.shapes[other] == call.output
    return Read(Sum(), (one, other), {}) if same and given["alpha"] == 1 else None


def read_concatenation(call: Call) -> Read | None:
    """``aten.cat`` along the channels."""
    parts = call.arguments["tensors"]
    axis = call.arguments["dim"] % (len(call.output) + 1)
    return Read(Concatenation(), tuple(parts), {}) if axis == 1 else None

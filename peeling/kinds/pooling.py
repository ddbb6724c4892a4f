"""Means and maxima over places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .kind import Call, Kind, Needs, Read, pair


@dataclass(frozen=True)
class AveragePool(Kind):
    """The mean of each window."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil: bool
    counts_padding: bool

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return F.avg_pool2d(inputs[0], self.kernel, self.stride, self.padding, self.ceil, self.counts_padding)


@dataclass(frozen=True)
class AverageInFront(AveragePool):
    """The mean of each window that the model takes behind a 1x1 convolution, taken in front of it."""


@dataclass(frozen=True)
class AdaptiveAveragePool(Kind):
    """Means over windows that divide the grid as evenly as they can."""

    size: tuple[int, int]

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return F.adaptive_avg_pool2d(inputs[0], self.size)


@dataclass(frozen=True)
class GlobalMean(Kind):
    """The mean over all places, one number for each channel."""

    keeps_axes: bool

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return inputs[0].mean(dim=(2, 3), keepdim=self.keeps_axes)


@dataclass(frozen=True)
class MaxPool(Kind):
    """The largest of each window: the derivative goes to the winner, which only the input tells."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil: bool
    needs = Needs.INPUTS

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return F.max_pool2d(inputs[0], self.kernel, self.stride, self.padding, self.dilation, self.ceil)


def read_average_pool(call: Call) -> Read | None:
    """``aten.avg_pool2d``."""
    given = call.arguments
    if given["divisor_override"] is not None:
        return None
    kernel = pair(given["kernel_size"])
    stride = pair(given["stride"]) if given["stride"] else kernel
    kind = AveragePool(kernel, stride, pair(given["padding"]), given["ceil_mode"], given["count_include_pad"])
    return Read(kind, (given["self"],), {})


def read_adaptive_average_pool(call: Call) -> Read | None:
    """``aten.adaptive_avg_pool2d``."""
    return Read(AdaptiveAveragePool((call.output[1], call.output[2])), (call.arguments["self"],), {})


def read_mean(call: Call) -> Read | None:
    """``aten.mean`` over height and width of a value with channels."""
    given = call.arguments
    entering = call.shapes[given["self"]]
    axes = sorted(axis % (len(entering) + 1) for axis in given["dim"] or ())
    if len(entering) != 3 or axes != [2, 3] or given["dtype"] is not None:
        return None
    return Read(GlobalMean(given["keepdim"]), (given["self"],), {})


def read_max_pool(call: Call) -> Read | None:
    """``aten.max_pool2d``."""
    given = call.arguments
    kernel = pair(given["kernel_size"])
    stride = pair(given["stride"]) if given["stride"] else kernel
    kind = MaxPool(kernel, stride, pair(given["padding"]), pair(given["dilation"]), given["ceil_mode"])
    return Read(kind, (given["self"],), {})

"""Batch norm, on its running statistics or on the batch's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .kind import Call, Kind, Needs, Read, tensors_of


@dataclass(frozen=True)
class BatchNorm(Kind):
    """``y = scale x + shift`` for each channel: all of it is known before."""

    eps: float

    def affine(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """``scale`` and ``shift``, one number for each channel."""
        scale = (tensors["variance"] + self.eps).rsqrt()
        if "weight" in tensors:
            scale = scale * tensors["weight"]
        shift = -tensors["mean"] * scale
        return scale, shift + tensors["bias"] if "bias" in tensors else shift

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        scale, shift = (over_channels(numbers, inputs[0]) for numbers in self.affine(tensors))
        return inputs[0] * scale + shift


@dataclass(frozen=True)
class BatchStatisticsNorm(Kind):
    """Batch norm by the mean and variance of the batch: its derivative depends on what enters."""

    eps: float
    needs = Needs.INPUTS

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        weight, bias = tensors.get("weight"), tensors.get("bias")
        return F.batch_norm(inputs[0], None, None, weight, bias, training=True, eps=self.eps)


def over_channels(numbers: Tensor, like: Tensor) -> Tensor:
    """One number for each channel, broadcast over a value of the images."""
    return numbers.reshape(1, -1, *(1 for _ in like.shape[2:]))


def read_batch_norm(call: Call) -> Read | None:
    """``aten.batch_norm``."""
    given = call.arguments
    tensors = tensors_of(call, weight="weight", bias="bias")
    if given["training"]:
        return Read(BatchStatisticsNorm(given["eps"]), (given["input"],), tensors)
    tensors |= tensors_of(call, mean="running_mean", variance="running_var")
    return Read(BatchNorm(given["eps"]), (given["input"],), tensors)

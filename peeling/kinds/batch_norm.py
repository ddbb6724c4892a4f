"""Batch norm, on its running statistics or on the batch's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .kind import Call, Kind, Layer, ModuleCall, Needs, Read, Told, attributes_of, tensors_of

# A channel that batch norm scales to less of the largest scale says nothing about its input.
_SILENT = 1e-6


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

    def cotangents(self, arriving: Tensor, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """See `Kind.cotangents`."""
        scale, _ = self.affine(tensors)
        return [arriving * over_channels(scale, arriving).to(arriving)]

    def inverse(
        self, values: Tensor, spread: Tensor, tensors: Mapping[str, Tensor], others: Sequence[Told] = ()
    ) -> Told | None:
        """See `Kind.inverse`."""
        scale, shift = (over_channels(numbers, values).to(values) for numbers in self.affine(tensors))
        heard = scale.abs() > _SILENT * scale.abs().max()
        divisor = torch.where(heard, scale, 1.0)
        return Told(torch.where(heard, (values - shift) / divisor, 0.0), heard, spread / divisor.abs())

    def carried(self, arriving: Tensor, spread: Tensor, tensors: Mapping[str, Tensor]) -> Told | None:
        """See `Kind.carried`."""
        scale = over_channels(self.affine(tensors)[0], arriving).to(arriving)
        heard = scale.abs() > _SILENT * scale.abs().max()
        divisor = torch.where(heard, scale, 1.0)
        return Told(torch.where(heard, arriving / divisor, 0.0), heard, spread / divisor.abs())

    @classmethod
    def of_module(cls, call: ModuleCall) -> Layer | None:
        """``nn.BatchNorm1d`` and ``nn.BatchNorm2d``, on whichever statistics."""
        module: Any = call.module
        tensors = attributes_of(module, weight="weight", bias="bias")
        if call.batch_statistics or module.running_mean is None:
            return Layer(BatchStatisticsNorm(module.eps), tensors)
        return Layer(cls(module.eps), tensors | attributes_of(module, mean="running_mean", variance="running_var"))


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

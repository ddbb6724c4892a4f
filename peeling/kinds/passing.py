"""Operations that change no number: another shape within each image, dropout that is off, zeros around."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .kind import Call, Kind, Layer, ModuleCall, Read

_COPIES = ("reflect", "replicate", "circular")


@dataclass(frozen=True)
class Reshape(Kind):
    """The same numbers of each image in another shape."""

    shape: tuple[int, ...]
    keeps_numbers = keeps_derivatives = True

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return inputs[0].reshape(len(inputs[0]), *self.shape)

    @classmethod
    def of_module(cls, call: ModuleCall) -> Layer | None:
        """``nn.Flatten``."""
        return Layer(cls(call.output))


@dataclass(frozen=True)
class Identity(Kind):
    """The same numbers."""

    keeps_numbers = keeps_derivatives = True

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return inputs[0] + 0.0

    @classmethod
    def of_module(cls, call: ModuleCall) -> Layer | None:
        """``nn.Identity``, and ``nn.Dropout``, which is off unless a probe says otherwise."""
        return Layer(cls())


@dataclass(frozen=True)
class ZeroPadding(Kind):
    """Zeros around the grid."""

    sides: tuple[int, ...]

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return F.pad(inputs[0], self.sides)


@dataclass(frozen=True)
class CopiedPadding(Kind):
    """Numbers of the image itself around the grid: reflected, repeated, or from the other side."""

    sides: tuple[int, ...]
    mode: str
    """As `torch.nn.functional.pad` has it."""

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return F.pad(inputs[0], self.sides, mode=self.mode)


@dataclass(frozen=True)
class Subsample(Kind):
    """The first of every so many places along both sides. No operation of a model is read as this: it stands for what
    others leave unread."""

    step: int

    def forward(self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Kind.forward`."""
        return inputs[0][:, :, :: self.step, :: self.step]


def read_reshape(call: Call) -> Read | None:
    """``aten.flatten``, ``aten.view``, ``aten.reshape``, ``aten.squeeze`` and ``aten.unsqueeze``: the order of the
    numbers stays, so that only the shape of the result matters."""
    source = call.arguments.get("self", call.arguments.get("input"))
    if not isinstance(source, str) or math.prod(call.shapes[source]) != math.prod(call.output):
        return None
    return Read(Reshape(call.output), (source,), {})


def read_identity(call: Call) -> Read | None:
    """``aten.clone``, ``aten.contiguous`` and their like."""
    return Read(Identity(), (call.arguments["self"],), {})


def read_dropout(call: Call) -> Read | None:
    """``aten.dropout``, where it is off."""
    given = call.arguments
    off = given["p"] == 0 or not given["train"]
    return Read(Identity(), (given["input"] if "input" in given else given["self"],), {}) if off else None


def read_padding(call: Call) -> Read | None:
    """``aten.pad``, and ``aten.constant_pad_nd`` with zeros."""
    given = call.arguments
    sides, mode = tuple(given["pad"]), given.get("mode", "constant")
    if mode in _COPIES:
        return Read(CopiedPadding(sides, mode), (given["self"],), {})
    if mode != "constant" or given["value"] not in (None, 0):
        return None
    return Read(ZeroPadding(sides), (given["self"],), {})

"""Kinds of operations: one file for each family, and the tables by which models are read.

A kind more is a class more, a line in `READERS` for each operation of an exported model that means it, and one in
`MODULES` for each module that does.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from .batch_norm import BatchNorm, BatchStatisticsNorm, over_channels, read_batch_norm
from .convolution import Convolution, read_convolution
from .joining import Concatenation, Sum, read_concatenation, read_sum
from .kind import Call, Kind, Layer, ModuleCall, Needs, Read, Told
from .linear import Linear, read_linear
from .opaque import Opaque
from .passing import (
    CopiedPadding,
    Identity,
    Reshape,
    Subsample,
    ZeroPadding,
    read_dropout,
    read_identity,
    read_padding,
    read_reshape,
)
from .pooling import (
    AdaptiveAveragePool,
    AverageInFront,
    AveragePool,
    GlobalMean,
    MaxPool,
    read_adaptive_average_pool,
    read_average_pool,
    read_max_pool,
    read_mean,
)
from .rectifier import Rectifier, read_clamp, read_relu, read_relu6

READERS: Mapping[str, Callable[[Call], Read | None]] = MappingProxyType(
    {
        "aten.conv2d.default": read_convolution,
        "aten.conv2d.padding": read_convolution,
        "aten.linear.default": read_linear,
        "aten.batch_norm.default": read_batch_norm,
        "aten.relu.default": read_relu,
        "aten.relu_.default": read_relu,
        "aten.relu6.default": read_relu6,
        "aten.relu6_.default": read_relu6,
        "aten.hardtanh.default": read_clamp,
        "aten.hardtanh_.default": read_clamp,
        "aten.clamp.default": read_clamp,
        "aten.clamp_.default": read_clamp,
        "aten.clamp_min.default": read_clamp,
        "aten.clamp_min_.default": read_clamp,
        "aten.add.Tensor": read_sum,
        "aten.add_.Tensor": read_sum,
        "aten.cat.default": read_concatenation,
        "aten.avg_pool2d.default": read_average_pool,
        "aten.adaptive_avg_pool2d.default": read_adaptive_average_pool,
        "aten.mean.dim": read_mean,
        "aten.max_pool2d.default": read_max_pool,
        "aten.flatten.using_ints": read_reshape,
        "aten.view.default": read_reshape,
        "aten.reshape.default": read_reshape,
        "aten._unsafe_view.default": read_reshape,
        "aten.squeeze.default": read_reshape,
        "aten.squeeze.dim": read_reshape,
        "aten.squeeze.dims": read_reshape,
        "aten.unsqueeze.default": read_reshape,
        "aten.clone.default": read_identity,
        "aten.contiguous.default": read_identity,
        "aten.alias.default": read_identity,
        "aten.dropout.default": read_dropout,
        "aten.dropout_.default": read_dropout,
        "aten.feature_dropout.default": read_dropout,
        "aten.feature_dropout_.default": read_dropout,
        "aten.pad.default": read_padding,
        "aten.constant_pad_nd.default": read_padding,
    }
)

MODULES: Mapping[type[nn.Module], type[Kind]] = MappingProxyType(
    {
        nn.Linear: Linear,
        nn.Conv2d: Convolution,
        nn.ReLU: Rectifier,
        nn.BatchNorm1d: BatchNorm,
        nn.BatchNorm2d: BatchNorm,
        nn.Dropout: Identity,
        nn.Dropout2d: Identity,
        nn.Identity: Identity,
        nn.Flatten: Reshape,
    }
)


def kind_of(module: nn.Module) -> type[Kind] | None:
    """The kind of a module's class or of the nearest one that it inherits from; what it does may be another thing."""
    return next((MODULES[one] for one in type(module).__mro__ if one in MODULES), None)


def read_module(call: ModuleCall) -> Layer | None:
    """What a module does in closed form, if it does what its class says; None where that has none."""
    kind = kind_of(call.module)
    return None if kind is None else kind.of_module(call)


__all__ = [
    "MODULES",
    "READERS",
    "AdaptiveAveragePool",
    "AverageInFront",
    "AveragePool",
    "BatchNorm",
    "BatchStatisticsNorm",
    "Call",
    "Concatenation",
    "Convolution",
    "CopiedPadding",
    "GlobalMean",
    "Identity",
    "Kind",
    "Layer",
    "Linear",
    "MaxPool",
    "ModuleCall",
    "Needs",
    "Opaque",
    "Read",
    "Rectifier",
    "Reshape",
    "Subsample",
    "Sum",
    "Told",
    "ZeroPadding",
    "kind_of",
    "over_channels",
    "read_module",
]

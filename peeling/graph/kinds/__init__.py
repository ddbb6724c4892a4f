"""Kinds of operations: one file for each family, and the table by which an exported model is read.

A kind more is a class more, and a line in `READERS` for each operation that means it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .batch_norm import BatchNorm, BatchStatisticsNorm, over_channels, read_batch_norm
from .convolution import Convolution, read_convolution
from .joining import Concatenation, Sum, read_concatenation, read_sum
from .kind import Call, Kind, Needs, Read
from .linear import Linear, read_linear
from .opaque import Opaque
from .passing import Identity, Reshape, ZeroPadding, read_dropout, read_identity, read_padding, read_reshape
from .pooling import (
    AdaptiveAveragePool,
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

__all__ = [
    "READERS",
    "AdaptiveAveragePool",
    "AveragePool",
    "BatchNorm",
    "BatchStatisticsNorm",
    "Call",
    "Concatenation",
    "Convolution",
    "GlobalMean",
    "Identity",
    "Kind",
    "Linear",
    "MaxPool",
    "Needs",
    "Opaque",
    "Read",
    "Rectifier",
    "Reshape",
    "Sum",
    "ZeroPadding",
    "over_channels",
]

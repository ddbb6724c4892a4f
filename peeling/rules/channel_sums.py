"""Gradients that sum up the derivative in front of a rectifier, channel by channel.

The gradient of a batch norm's shift, and of a convolution's bias, is the sum of the derivative by its output over
images and places. Where that output reaches the rectifier as it is, alone or in a sum (a sum passes derivatives on as
they are), the derivative there is the one behind the rectifier at open units and zero at the others: one equation for
each channel in which every unit has its share (see `checksums`). The two branches of a residual block give it twice.
"""

from __future__ import annotations

from torch import Tensor

from ..checksums import ChannelSum, stored
from .rule import Setting

# Deviations that a shift's own rounding may make, in a weight delta.
_FARTHEST = 3.0


def shift_gradients(setting: Setting, rectifier: str) -> list[Tensor]:
    """Each captured gradient that sums up the derivative in front of a rectifier, in the type it was sent in."""
    return [gradient for _, gradient in _summing(setting, rectifier)]


def _summing(setting: Setting, rectifier: str) -> list[tuple[str, Tensor]]:
    """The same, each with the operation whose shift it is of."""
    graph = setting.graph
    (entering,) = graph.by_name[rectifier].inputs
    found: list[tuple[str, Tensor]] = []
    left = [(entering, rectifier)]
    while left:
        value, reader = left.pop()
        if tuple(node.name for node in graph.readers(value)) != (reader,) or value not in graph.by_name:
            continue
        node = graph.by_name[value]
        gradient = setting.gradient(value, "bias")
        if gradient is not None and node.kind.bias_axis % (len(node.shape) + 1) == 1:
            found.append((value, gradient))
        elif node.kind.keeps_derivatives and len(set(node.inputs)) == len(node.inputs):
            left += [(name, value) for name in node.inputs if graph.shape(name) == node.shape]
    return found


def channel_sums(setting: Setting, rectifier: str, unmasked: Tensor) -> list[ChannelSum]:
    """The sums that the units of a rectifier must explain.

    Args:
        setting: With the captured gradients.
        rectifier: Its name.
        unmasked: The derivative by its output.
    """
    terms = unmasked.reshape(*unmasked.shape[:2], -1)
    found = list[ChannelSum]()
    for value, gradient in _summing(setting, rectifier):
        found.append(channel_sum(gradient, terms, setting.deviation(value, "bias")))
    return found


def channel_sum(gradient: Tensor, terms: Tensor, deviation: Tensor | None) -> ChannelSum:
    """One such gradient and the terms of its sum, with what the rounding of both lets them differ by.

    Args:
        gradient: In the type it was sent in.
        terms: ``(image, channel, place)``.
        deviation: Of the gradient's entries; None where all of them are known as well (`Setting.deviation`).
    """
    total, rounding = stored(gradient)
    return ChannelSum(total, terms, rounding if deviation is None else rounding + _FARTHEST * deviation)

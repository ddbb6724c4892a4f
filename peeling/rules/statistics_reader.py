"""The equations of one convolution in front of batch norm on the batch's own statistics, from what is known."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..graph import Node
from ..kinds import BatchStatisticsNorm, Convolution, over_channels
from ..layers import rounding
from .batch_statistics import behind_batch_statistics
from .channel_sums import channel_sum
from .equations import affordable
from .knowledge import Knowledge, Known
from .rule import Setting
from .statistics_equations import Reader

# Channels whose gradient, or whose scale in the batch norm, is a smaller share of the largest say nothing.
_SILENT = 1e-6


def told_of(setting: Setting, known: Knowledge, value: str) -> list[Node]:
    """The convolutions that read a value and whose equations are known, and affordable.

    Args:
        setting: With the captured gradients.
        known: With derivatives behind batch norms.
        value: Its name.
    """
    return [node for node in setting.graph.readers(value) if _is_told(setting, known, node)]


def _is_told(setting: Setting, known: Knowledge, node: Node) -> bool:
    kind, behind = node.kind, behind_batch_statistics(setting.graph, node)
    if not isinstance(kind, Convolution) or behind is None or setting.gradient(node.name, "weight") is None:
        return False
    arriving = known.arriving.get(behind.name)
    places = places_of(setting, node.inputs[0])
    return arriving is not None and arriving.complete and affordable(kind, places, node.shape[0])


def places_of(setting: Setting, value: str) -> int:
    """Of a value, of all images."""
    _, height, width = setting.graph.shape(value)
    return setting.image_count * height * width


def unknown_inputs(setting: Setting, known: Knowledge) -> list[tuple[str, tuple[Known | None, ...]]]:
    """Values that such equations are told of, those with the fewest places first; each with all that these rest on."""
    graph = setting.graph
    wanted = [
        name
        for name in graph.by_name
        if known.complete(name) is None and len(graph.shape(name)) == 3 and told_of(setting, known, name)
    ]
    found = []
    for value in sorted(wanted, key=lambda name: places_of(setting, name)):
        behind = [one.name for node in graph.readers(value) if (one := behind_batch_statistics(graph, node))]
        beside = [node.name for node in graph.readers(value)]
        given = (known.activations.get(value), *map(known.arriving.get, (*behind, *beside)))
        found.append((value, (*given, *map(known.activations.get, behind))))
    return found


def reader_of(setting: Setting, known: Knowledge, node: Node) -> Reader:
    """The equations, in the output channels that say something.

    Args:
        setting: With the captured gradients.
        known: With the derivative behind the batch norm, and what is known of its output.
        node: The convolution.
    """
    behind, sent = behind_batch_statistics(setting.graph, node), setting.gradient(node.name, "weight")
    assert behind is not None
    assert sent is not None
    assert isinstance(behind.kind, BatchStatisticsNorm)
    assert isinstance(node.kind, Convolution)
    gradient, tensors = sent.detach().cpu().double(), setting.graph.tensors_of(behind)
    scale = tensors.get("weight", torch.ones(node.shape[0], dtype=torch.float64))
    offset = tensors.get("bias", torch.zeros(node.shape[0], dtype=torch.float64))
    size = gradient.flatten(1).norm(dim=1)
    live = (size > _SILENT * size.max()) & (scale.abs() > _SILENT * scale.abs().max())
    derivative = known.arriving[behind.name].values
    told, spread, is_told = _entering(known.activations.get(behind.name), derivative, scale, offset)
    shift, scaled = (setting.gradient(behind.name, role) for role in ("bias", "weight"))
    off = [setting.deviation(behind.name, role) for role in ("bias", "weight")]
    sums_off = [torch.zeros_like(scale) if one is None else one for one in off]
    return Reader(
        kind=node.kind,
        weight=setting.graph.tensors_of(node)["weight"],
        eps=behind.kind.eps,
        gradient=gradient / torch.where(live, scale, 1.0)[:, None, None, None],
        rounding=rounding(sent),
        derivative=derivative,
        shift_sum=derivative.sum(dim=(0, 2, 3)) if shift is None else shift.detach().cpu().double(),
        scaled_sum=None if scaled is None else scaled.detach().cpu().double(),
        told=told,
        spread=spread,
        is_told=is_told,
        adds_up=_adds_up(derivative, shift, off[0]),
        sums_off=None if all(one is None for one in off) else (sums_off[0], sums_off[1]),
    ).of_outputs(live)


def _entering(
    output: Known | None, like: Tensor, scale: Float[Tensor, " output"], offset: Float[Tensor, " output"]
) -> tuple[Tensor, Tensor, Tensor]:
    """What enters the batch norm about its mean and of variance 1, its spread, and where it is known."""
    if output is None:
        return torch.zeros_like(like), torch.zeros_like(like), torch.zeros_like(like, dtype=torch.bool)
    divisor = over_channels(torch.where(scale == 0, torch.inf, scale), like)
    told = torch.where(output.known, (output.values - over_channels(offset, like)) / divisor, 0.0)
    return told, output.deviation.expand_as(like) / divisor.abs(), output.known


def _adds_up(derivative: Tensor, shift: Tensor | None, off: Tensor | None) -> Bool[Tensor, " output"]:
    """Of which channels the derivative has the sum that was sent, to the rounding of that; of all where none was."""
    if shift is None:
        return torch.ones(derivative.shape[1], dtype=torch.bool)
    sums = channel_sum(shift, derivative.flatten(2), off)
    everything = torch.ones_like(sums.terms)
    return sums.difference(everything).abs() <= sums.tolerance(everything)

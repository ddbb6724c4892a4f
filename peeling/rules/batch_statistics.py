"""Batch norm on the batch's own statistics, as rules see it: the derivative in front of it, and the one behind it.

With u the input of one channel over the N places of the batch, ``sigma^2`` its variance (with eps), ``x = (u - mean) /
sigma``, and d the derivative behind ``y = gamma x + beta``, the derivative in front is

    Delta = gamma / sigma (d - sum(d) / N - x sum(d x) / N)

It has lost the parts of d along 1 and along x. Both sums are gradients that were sent: of the shift and of the weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from ..graph import Graph, Node
from ..kinds import BatchStatisticsNorm, over_channels
from .knowledge import Knowledge, Known
from .rule import Derived, Setting

# A channel that batch norm scales to less of the largest scale says nothing about what enters.
_SILENT = 1e-6


@dataclass(frozen=True)
class Normalised:
    """What enters such a batch norm, about its mean and of variance 1, and its deviations."""

    values: Float[Tensor, "image channel ..."]
    deviation: Float[Tensor, " channel"]
    """With eps."""


def normalised(entering: Float[Tensor, "image channel ..."], eps: float) -> Normalised:
    """By the batch's own mean and variance.

    Args:
        entering: For all images.
        eps: Added to the variance.
    """
    over = (0, *range(2, entering.dim()))
    mean, variance = entering.mean(dim=over, keepdim=True), entering.var(dim=over, unbiased=False, keepdim=True)
    deviation = (variance + eps).sqrt()
    return Normalised((entering - mean) / deviation, deviation.flatten())


def behind_batch_statistics(graph: Graph, node: Node) -> Node | None:
    """The batch norm on the batch's own statistics that alone reads an operation's output; None where another does."""
    readers = graph.readers(node.name)
    return readers[0] if len(readers) == 1 and isinstance(readers[0].kind, BatchStatisticsNorm) else None


def derivatives_behind_statistics(setting: Setting, known: Knowledge) -> Iterator[Derived]:
    """The derivative behind such a batch norm, from that in front of it and what enters."""
    if setting.steps is not None:
        return  # of each step's own sums the delta has their total alone
    for node in setting.graph.nodes:
        if node.name in known.arriving or not isinstance(node.kind, BatchStatisticsNorm):
            continue
        value = node.inputs[0]
        entering, arriving = known.complete(value), known.arriving.get(value)
        alone = setting.graph.readers(value) == (node,)
        if entering is None or arriving is None or not arriving.complete or not alone:
            continue
        found = _behind(setting, node, entering, arriving)
        if found is not None:
            yield Derived("derivatives forwards", node.name, known.with_arriving(node.name, found))


def _behind(setting: Setting, node: Node, entering: Known, arriving: Known) -> Known | None:
    """None where the sums were not sent, or a channel does not reach the other side."""
    kind = node.kind
    assert isinstance(kind, BatchStatisticsNorm)
    shift, scaled = (setting.gradient(node.name, role) for role in ("bias", "weight"))
    if shift is None or scaled is None:
        return None
    scale = setting.graph.tensors_of(node)["weight"]
    if not bool((scale.abs() > _SILENT * scale.abs().max()).all()):
        return None
    count = len(entering.values) * prod(node.shape[1:])

    def behind(by_input: Tensor, inputs: Tensor, sums: tuple[Tensor, Tensor]) -> Tensor:
        seen = normalised(inputs, kind.eps)
        ratio = over_channels(seen.deviation / scale, inputs)
        by_shift, by_scale = (over_channels(one / count, inputs) for one in sums)
        return by_input * ratio + by_shift + seen.values * by_scale

    sums = _float64(shift), _float64(scaled)
    values = behind(arriving.values, entering.values, sums)
    apart = behind(arriving.shaken(), entering.shaken(1), _shaken(setting, node, sums)) - values
    size = apart.flatten(1).square().mean(dim=1).sqrt()
    deviation = size.reshape(-1, *(1 for _ in node.shape)).expand_as(values)
    return Known(values, torch.ones_like(values, dtype=torch.bool), deviation, "derivatives forwards")


def _shaken(setting: Setting, node: Node, sums: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The gradients of shift and scale as they might have been sent: off by their own rounding, where it is known."""
    random, found = torch.Generator().manual_seed(2), list[Tensor]()
    for role, one in zip(("bias", "weight"), sums, strict=True):
        deviation = setting.deviation(node.name, role)
        noise = torch.randn(one.shape, generator=random, dtype=one.dtype)
        found.append(one if deviation is None else one + deviation * noise)
    return found[0], found[1]


def derivative_in_front(setting: Setting, known: Knowledge, node: Node, behind: Tensor) -> Tensor | None:
    """The derivative in front of such a batch norm where that behind it has these values, entry by entry; its sums are
    those that were sent. None where they were not, or what enters is not known.

    Args:
        setting: With the captured gradients.
        known: With what enters.
        node: The batch norm.
        behind: Any numbers of the shape of its output.
    """
    assert isinstance(node.kind, BatchStatisticsNorm)
    entering = known.complete(node.inputs[0])
    shift, scaled = (setting.gradient(node.name, role) for role in ("bias", "weight"))
    if entering is None or shift is None or scaled is None:
        return None
    seen = normalised(entering.values, node.kind.eps)
    count = len(entering.values) * prod(node.shape[1:])
    ratio = setting.graph.tensors_of(node)["weight"] / seen.deviation
    off = over_channels(_float64(shift), behind) + seen.values * over_channels(_float64(scaled), behind)
    return (behind - off / count) * over_channels(ratio, behind)


def _float64(gradient: Tensor) -> Tensor:
    return gradient.detach().cpu().double()

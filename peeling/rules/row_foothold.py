"""Another rule that begins: a block of pointwise and depthwise convolutions, from its weight gradients alone.

See `rows`: what the block's last convolution reads, at every place, by linear programs; each place's length by the sum
of the derivative in front; what enters the block by two row spaces; and by the depthwise convolution which places are
neighbours. Only where a pass through the block then gives again what its last convolution reads is any of it believed.

Rank: ``N = B H W <= min(C_in, C_out)`` of the last convolution, and ``2 N`` at most the channels that enter the block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..graph import Node
from ..kinds import Convolution, Rectifier
from ..layers import LARGEST
from ..refusals import Refused, Why
from ..rows import (
    MOST_PLACES,
    Block,
    Lengths,
    NoRows,
    barred,
    block_ends,
    find_block,
    find_rows,
    place_lengths,
    place_order,
)
from .channel_sums import shift_gradients
from .knowledge import Knowledge, evenly
from .rule import Derived, Setting

RULE = "rows"

# Float32 keeps about this of the sums that tell the lengths; nothing is called more exact.
_LEAST_ERROR = 5e-7
# What the lengths may leave of the gradient that they are taken from, and both ends of their difference.
_LARGEST_MISFIT = 0.01
# Operations of the linear programs, as a multiple of (places)^3 (channels).
_PROGRAMS = 1500.0


def row_foothold(setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
    """One block, where nothing is known yet; the one with the fewest places for its channels first."""
    if known.arriving or setting.foothold is not None:
        return
    formed = [block for block in map(partial(find_block, setting.graph), setting.graph.nodes) if block is not None]
    if setting.steps is not None:
        yield from (Refused(RULE, block.inner, Why.OVER_STEPS) for block in formed[-1:])
        return
    blocks = [block for block in formed if _has_gradients(setting, block)]
    if not blocks:
        yield from _barred(setting, formed)
    blocks.sort(key=lambda block: _places(setting, block) / _rank(setting, block))
    for block in blocks:
        if _places(setting, block) <= _rank(setting, block):
            yield setting.effort.once(RULE, block.inner, (), partial(_taken, setting, known, block))
    if blocks and _places(setting, blocks[0]) > _rank(setting, blocks[0]):
        rank = _rank(setting, blocks[0])
        why = Why.LARGE if rank == MOST_PLACES else Why.FEW_EQUATIONS
        yield Refused(RULE, blocks[0].inner, why, _places(setting, blocks[0]), rank)


def _barred(setting: Setting, formed: Sequence[Block]) -> Iterator[Refused]:
    """What bars the last of the blocks, those included that lack but one thing of the form."""
    if formed and not shift_gradients(setting, formed[-1].inner):
        yield Refused(RULE, formed[-1].inner, Why.NO_SUMS)
        return
    for node in reversed(setting.graph.nodes):
        if (why := barred(setting.graph, node)) is not None:
            yield Refused(RULE, node.inputs[0], why)
            return


def _has_gradients(setting: Setting, block: Block) -> bool:
    weights = (block.expand, block.project, block.following)
    return all(setting.gradient(node.name, "weight") is not None for node in weights) and bool(
        shift_gradients(setting, block.inner)
    )


def _places(setting: Setting, block: Block) -> int:
    return setting.image_count * math.prod(block.project.shape[1:])


def _rank(setting: Setting, block: Block) -> int:
    """The places that are told apart at most."""
    ends = setting.graph.shape(block.entering)[0] // 2
    return min(setting.graph.shape(block.inner)[0], block.project.shape[0], ends, MOST_PLACES)


def _taken(setting: Setting, known: Knowledge, block: Block) -> Derived | Refused:
    places, value = _places(setting, block), block.inner
    gradient = setting.gradient(block.project.name, "weight")
    assert gradient is not None
    if not setting.effort.affords(_PROGRAMS * places**3 * gradient.shape[1]):
        return Refused(RULE, value, Why.COST, places)
    rows = find_rows(gradient, places)
    if isinstance(rows, NoRows):
        return Refused(RULE, value, rows.why, places)
    weight = setting.graph.tensors_of(block.project)["weight"].flatten(1)
    shift = shift_gradients(setting, value)[0]
    found = place_lengths(rows, weight, shift, _ceiling(setting, value))
    if found is None or not found.misfit <= _LARGEST_MISFIT:
        return Refused(RULE, value, Why.LENGTHS, places, error=None if found is None else found.misfit)
    assembled = _assembled(setting, block, found)
    if isinstance(assembled, Refused):
        return assembled
    error = assembled.error.clamp_min(max(_LEAST_ERROR, float(rows.error.max())))
    if not float(error.max()) <= setting.tolerance:
        return Refused(RULE, value, Why.INEXACT, places, error=float(error.max()))
    checks = {
        "places": places,
        "equations": _rank(setting, block),
        "noise": rows.noise,
        "lengths": found.misfit,
        "ends": assembled.misfit,
        "pass": assembled.off,
    }
    new = replace(known, lengths=torch.full_like(error, max(_LEAST_ERROR, found.error)))
    new = new.with_activations(value, evenly(assembled.inner, error, RULE))
    new = new.with_activations(block.entering, evenly(assembled.entering, error, RULE))
    new = new.with_arriving(block.project.name, evenly(assembled.cotangents, error, RULE))
    return Derived(RULE, value, new, checks, notable=True)


def _ceiling(setting: Setting, rectifier: str) -> float:
    kind = setting.graph.by_name[rectifier].kind
    assert isinstance(kind, Rectifier)
    return kind.ceiling


@dataclass(frozen=True)
class _Assembled:
    """All of a block in one order of the images."""

    entering: Tensor
    inner: Tensor
    cotangents: Tensor
    misfit: float
    """What both ends leave of what the block adds."""
    off: float
    """By how much a pass through the block is off from the rows, relative, where that is most."""
    error: Tensor


def _assembled(setting: Setting, block: Block, found: Lengths) -> _Assembled | Refused:
    """The rows in order, and what enters the block."""
    places, graph = len(found.inputs), setting.graph
    added = _run(setting, (block.project, *block.to_sum), found.inputs)
    gradients = [setting.gradient(node.name, "weight") for node in (block.expand, block.following)]
    assert gradients[0] is not None
    assert gradients[1] is not None
    ends = block_ends(gradients[0], gradients[1], added)
    if ends is None:
        return Refused(RULE, block.entering, Why.OPEN, places)
    if not float(ends.misfit.max()) <= _LARGEST_MISFIT:
        return Refused(RULE, block.entering, Why.INEXACT, places, error=float(ends.misfit.max()))
    hidden = _run(setting, (block.expand, *block.to_hidden), ends.entering)
    outputs = _undone(setting, block, found.inputs)
    kernel = graph.tensors_of(block.depthwise)["weight"][:, 0]
    size = block.project.shape[1], block.project.shape[2]
    order = place_order(hidden, outputs, found.is_open, kernel, size)
    if order is None or len(order) != setting.image_count:
        return Refused(RULE, block.entering, Why.NEIGHBOURS, places)
    entering, inner, cotangents = (
        rows[order].permute(0, 3, 1, 2).contiguous() for rows in (ends.entering, found.inputs, found.cotangents)
    )
    passed = entering
    for node in (block.expand, *block.to_hidden, block.depthwise, *block.to_inner):
        passed = node.kind.forward([passed], graph.tensors_of(node))
    off = (passed - inner).flatten(1).norm(dim=1) / inner.flatten(1).norm(dim=1).clamp_min(1e-300)
    error = (LARGEST * off).maximum(ends.error[order].flatten(1).amax(dim=1)).clamp_min(found.error)
    return _Assembled(entering, inner, cotangents, float(ends.misfit.max()), float(off.max()), error)


def _run(setting: Setting, nodes: Sequence[Node], rows: Tensor) -> Tensor:
    """Operations that see each place by itself, on rows."""
    values = rows[:, :, None, None]
    for node in nodes:
        values = node.kind.forward([values], setting.graph.tensors_of(node))
    return values[:, :, 0, 0]


def _undone(setting: Setting, block: Block, rows: Tensor) -> Tensor:
    """The depthwise convolution's output without its bias, from what the block's last convolution reads; it holds at
    open units."""
    values = rows[:, :, None, None]
    for node in reversed(block.to_inner[:-1]):
        told = node.kind.inverse(values, torch.zeros_like(values), setting.graph.tensors_of(node))
        assert told is not None
        values = told.values
    tensors = setting.graph.tensors_of(block.depthwise)
    assert isinstance(block.depthwise.kind, Convolution)
    return values[:, :, 0, 0] - tensors["bias"] if "bias" in tensors else values[:, :, 0, 0]

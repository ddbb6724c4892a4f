"""The scale of a convolution's input where batch norm on the batch's own statistics hides it.

Where units of it are known, as behind a skip, they tell it. Else the gradient in front does: what sums up the
derivative in front of the rectifier whose output the value is (see `channel_sums`) is, channel by channel,

    sum over open units of (what comes by other ways + what comes through these convolutions / scale)

with one number unknown and an equation for each channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import Node
from ..kinds import Needs
from ..layers import relative, sizes
from .batch_statistics import behind_batch_statistics
from .channel_sums import shift_gradients
from .knowledge import Knowledge, Known
from .passing import through
from .rule import Setting

# Units that are known tell the scale where there are so many.
_ENOUGH = 100
# Thresholds of open units that are tried, as shares of each image's root mean square.
_THRESHOLDS = tuple(10 ** (-power / 2) for power in range(3, 15))
# So large a share of the channels, and so many, agree on the scale where it is right: in the others a unit may be on
# the wrong side of the threshold, of which noise makes as many as there are channels.
_SHARE, _FEWEST = 0.25, 8
# Channels off by more than so many times what these are count for nothing, in so many rounds; and deviations of the
# scale, of which the median is two thirds of one, that count as its error.
_FAR, _ROUNDS, _DOUBT = 6.0, 8, 4.5


@dataclass(frozen=True)
class Scale:
    """What was found."""

    factor: float
    """By which the values are to be multiplied."""
    error: float
    """Estimated, relative."""
    misfit: float
    """What it leaves of what told it, relative."""


def scale_of(setting: Setting, known: Knowledge, nodes: Sequence[Node], values: Tensor, value: str) -> Scale | None:
    """By units that are known, or else by the gradient in front; None where neither tells it.

    Args:
        setting: With the captured gradients.
        known: With the derivatives behind the batch norms.
        nodes: Convolutions that the values were found by.
        values: Up to the scale.
        value: Their name.
    """
    graph = setting.graph
    found = scale_by_known(values, known.activations.get(value))
    if found is not None:
        return found
    shifts = shift_gradients(setting, value) if graph.by_name[value].kind.needs is Needs.OUTPUT else []
    if not shifts:
        return None
    here = torch.zeros_like(values)
    for node in nodes:
        behind = behind_batch_statistics(graph, node)
        assert behind is not None
        output = node.kind.forward([values], graph.tensors_of(node))
        (front,) = behind.kind.cotangents(known.arriving[behind.name].values, [output], graph.tensors_of(behind))
        here = here + node.kind.cotangents(front, [values], graph.tensors_of(node))[0]
    others = [through(setting, known, node, value) for node in graph.readers(value) if node not in nodes]
    if any(one is None for one in others):
        return None
    beside = torch.stack([one.values for one in others if one is not None]).sum(dim=0) if others else None
    return scale_by_shift(values, here, beside, shifts[0])


def scale_by_known(values: Tensor, known: Known | None) -> Scale | None:
    """By units that are known; None where they are too few."""
    if known is None or int(known.known.sum()) < _ENOUGH:
        return None
    ours, theirs = values[known.known], known.values[known.known]
    length = ours.square().sum()
    if not bool(length > 0):
        return None
    factor = float((ours * theirs).sum() / length)
    left = relative(factor * ours - theirs, theirs)
    return Scale(factor, _DOUBT * left / len(ours) ** 0.5, left)


def scale_by_shift(values: Tensor, through: Tensor, beside: Tensor | None, shift_gradient: Tensor) -> Scale | None:
    """By the gradient that sums up the derivative in front of the rectifier; None where it says nothing.

    Args:
        values: Behind the rectifier, up to the scale.
        through: The derivative by it that comes through the convolutions whose scale is hidden, at these values.
        beside: The derivative that comes by other ways; None where there are none.
        shift_gradient: Captured.
    """
    target = shift_gradient.detach().cpu().double()
    sizes_of = sizes(values)[:, None, None, None]
    best: Scale | None = None
    for threshold in _THRESHOLDS:
        is_open = values > threshold * sizes_of
        column = (through * is_open).sum(dim=(0, 2, 3))
        right = target if beside is None else target - (beside * is_open).sum(dim=(0, 2, 3))
        found = _fitted(column, right)
        if found is not None and (best is None or found.misfit < best.misfit):
            best = found
    return best


def _fitted(column: Tensor, right: Tensor) -> Scale | None:
    """One over the factor of a column, by least squares over the channels that agree.

    That of one channel which most nearly fits a share of them begins (least quantile of what is left): channels with a
    unit on the wrong side may be more than half.
    """
    live = column != 0
    if not bool(live.any()):
        return None
    column, right = column[live], right[live]
    agreeing = min(len(right), max(_FEWEST, round(_SHARE * len(right))))
    each = right / column
    # Of all channels that begin, and what each leaves of the others.
    least = (right - each[:, None] * column).abs().kthvalue(agreeing, dim=1).values
    inverse = float(each[torch.where(each > 0, least, torch.inf).argmin()])
    off, kept = right.abs(), torch.ones_like(right)
    for _ in range(_ROUNDS):
        off = (right - inverse * column).abs()
        kept = (off <= _FAR * off.kthvalue(agreeing).values).double()
        square = float((kept * column.square()).sum())
        if not square > 0:
            return None
        inverse = float((kept * column * right).sum()) / square
    if not inverse > 0:
        return None
    typical = float(off[kept > 0].median())
    error = _DOUBT * typical / (float((kept * column.square()).sum()) ** 0.5 * inverse)
    return Scale(1 / inverse, error, typical / max(float(right.abs().median()), 1e-300))

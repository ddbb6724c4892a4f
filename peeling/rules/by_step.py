"""Operations on visits, each under the weights of its own step.

In a weight delta the visits of one step went through the weights that the steps before it had made (`LocalSteps`). A
parameter's values before each step are known once its steps' gradients are (`step_weights`); until then nothing that
needs it follows. Batch statistics are each step's own. For a gradient all images have the same weights, and nothing
here does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..graph import Node
from ..kinds import BatchStatisticsNorm, Needs, Told
from ..layers import sizes
from .knowledge import Knowledge
from .rule import Setting

_ALL = slice(None)


def tensors_by_step(
    setting: Setting, known: Knowledge, node: Node, *, shifted: bool = True
) -> list[tuple[slice, dict[str, Tensor]]] | None:
    """An operation's parameters and buffers for the visits of each step; None where they are not known.

    Args:
        setting: With the steps.
        known: With what is known of them.
        node: The operation.
        shifted: Whether what it adds matters: of a derivative it does not.
    """
    before = setting.graph.tensors_of(node)
    if setting.steps is None:
        return [(_ALL, before)]
    moved = {
        role: name
        for role, name in node.tensors.items()
        if name in setting.gradients and (shifted or role != "bias" or node.kind.needs is not Needs.NOTHING)
    }
    if any(name not in known.weights for name in moved.values()):
        return None
    if not moved and not isinstance(node.kind, BatchStatisticsNorm):
        return [(_ALL, before)]
    return [
        (visits, before | {role: known.weights[name][step] for role, name in moved.items()})
        for step, visits in enumerate(setting.steps.slices)
    ]


def forward(setting: Setting, known: Knowledge, node: Node, inputs: Sequence[Tensor]) -> Tensor | None:
    """See `Kind.forward`; None where the weights of a step are not known."""
    steps = tensors_by_step(setting, known, node)
    if steps is None:
        return None
    return torch.cat([node.kind.forward([one[visits] for one in inputs], tensors) for visits, tensors in steps])


def cotangents(
    setting: Setting, known: Knowledge, node: Node, arriving: Tensor, inputs: Sequence[Tensor]
) -> list[Tensor] | None:
    """See `Kind.cotangents`; None where the weights of a step are not known."""
    steps = tensors_by_step(setting, known, node, shifted=False)
    if steps is None:
        return None
    found = [
        node.kind.cotangents(arriving[visits], [one[visits] for one in inputs], tensors) for visits, tensors in steps
    ]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def inverse(
    setting: Setting, known: Knowledge, node: Node, values: Tensor, spread: Tensor, others: Sequence[Told]
) -> Told | None:
    """See `Kind.inverse`; None too where the weights of a step are not known."""

    def one(visits: slice, tensors: dict[str, Tensor]) -> Told | None:
        beside = [Told(told.values[visits], told.heard[visits], told.spread[visits]) for told in others]
        return node.kind.inverse(values[visits], spread[visits], tensors, beside)

    return _with_errors(setting, known, lambda some: _together(tensors_by_step(setting, some, node), one, values))


def carried(setting: Setting, known: Knowledge, node: Node, arriving: Tensor, spread: Tensor) -> Told | None:
    """See `Kind.carried`; None too where the weights of a step are not known."""

    def one(visits: slice, tensors: dict[str, Tensor]) -> Told | None:
        return node.kind.carried(arriving[visits], spread[visits], tensors)

    return _with_errors(
        setting,
        known,
        lambda some: _together(tensors_by_step(setting, some, node, shifted=False), one, arriving),
    )


def _with_errors(setting: Setting, known: Knowledge, make: Callable[[Knowledge], Told | None]) -> Told | None:
    """What is told, with the error that the weights of the steps bring in."""
    found = make(known)
    instead = None if setting.steps is None or found is None else make(known.with_other_weights)
    if found is None or instead is None:
        return found
    off = sizes(instead.values - found.values)
    shape = (-1, *(1 for _ in found.values.shape[1:]))
    return replace(found, spread=(found.spread.square() + off.reshape(shape).square()).sqrt())


def _together(
    steps: list[tuple[slice, dict[str, Tensor]]] | None,
    one: Callable[[slice, dict[str, Tensor]], Told | None],
    like: Tensor,
) -> Told | None:
    found = [one(visits, tensors) for visits, tensors in steps or ()]
    told = [part for part in found if part is not None]
    if len(told) < max(len(found), 1):
        return None
    if len(told) == 1:
        return told[0]
    sizes = [len(like[visits]) for visits, _ in steps or ()]
    heard = [part.heard.expand(size, *part.values.shape[1:]) for part, size in zip(told, sizes, strict=True)]
    return Told(
        torch.cat([part.values for part in told]),
        torch.cat(heard),
        torch.cat([part.spread.expand_as(part.values) for part in told]),
    )

"""Units on the wrong side of a rectifier, found by the weight gradient of the convolution in front of it.

Where a convolution's input is known, each row of its weight gradient is a linear system in the derivatives by that
output channel, ``G_o = sum over places of patch x cotangent_o``, and the derivative that was used leaves as much of it
as of every other row. A row of which clearly more is left was made with a unit on the wrong side. The derivative solved
back from that row is the one behind the rectifier where a unit was open and zero where it was shut, and so tells the
side of each unit; what does not explain the row then is left as it was.

Rank: ``N_out <= k^2 C_in``; beyond it, and where that does not explain a row, a few units are looked for one after
another (`pursued_units`). The input is found in spite of these rows (see `equations.solve`), or through another
convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ..graph import Node
from ..kinds import BatchStatisticsNorm, Convolution, Needs
from . import by_step
from .batch_statistics import derivative_in_front
from .equations import deviant
from .knowledge import Knowledge, Known
from .output_derivative import determine, patches_of, solve_derivative
from .pursued_units import pursued_units
from .rule import Derived, Setting
from .switched_units import with_switched

# A derivative counts where it is so many deviations of the one that was solved back.
_SEEN = 10.0
# What has to be left of a row, as a share of what was left before.
_EXPLAINED = 0.2


@dataclass(frozen=True)
class _Behind:
    """The rectifier behind a convolution, and the derivative by the convolution's output if a unit is open or shut."""

    rectifier: str
    if_open: Tensor
    if_shut: Tensor
    """Zero but where batch norm on the batch's own statistics stands between."""
    is_open: Tensor
    """Its units, as they are believed to be."""


def mended_units(setting: Setting, known: Knowledge) -> Iterator[Derived]:
    """Each convolution whose input and derivative are known is looked at once."""
    for node in setting.graph.nodes:
        if not isinstance(node.kind, Convolution) or node.name in known.examined or node.kind.groups != 1:
            continue
        entering, arriving = known.complete(node.inputs[0]), known.arriving.get(node.name)
        gradient = setting.gradient(node.name, "weight")
        if entering is None or arriving is None or arriving.rule != "derivatives" or gradient is None:
            continue
        seen = replace(known, examined=known.examined | {node.name})
        behind = _behind(setting, known, node)
        switched = None if behind is None else _switched(setting, node, gradient, entering, arriving, behind)
        if behind is None or switched is None:
            yield Derived("units examined", node.name, seen)
            continue
        seen = replace(seen, mended=known.mended | {node.name})
        mended = with_switched(setting, seen, behind.rectifier, switched)
        yield Derived("units mended", behind.rectifier, mended, {"switched": float(switched.sum())}, notable=True)


def _behind(setting: Setting, known: Knowledge, node: Node) -> _Behind | None:
    """None where the path to a rectifier divides, or is not linear."""
    graph, path, value = setting.graph, list[tuple[Node, str]](), node.name
    while True:
        readers = graph.readers(value)
        if len(readers) != 1 or readers[0].inputs.count(value) != 1:
            return None
        (reader,) = readers
        if reader.kind.needs is Needs.OUTPUT:
            break
        crossed = reader.kind.needs is Needs.NOTHING or isinstance(reader.kind, BatchStatisticsNorm)
        if not crossed or reader.shape != node.shape:
            return None
        path.append((reader, value))
        value = reader.name
    arriving, units = known.arriving.get(reader.name), known.units.get(reader.name)
    if arriving is None or not arriving.complete or units is None or known.complete(reader.name) is None:
        return None
    if_open, if_shut = arriving.values, torch.zeros_like(arriving.values)
    for step, entering in reversed(path):
        position = step.inputs.index(entering)
        passed_open, passed_shut = (_passed(setting, known, step, one, position) for one in (if_open, if_shut))
        if passed_open is None or passed_shut is None:
            return None
        if_open, if_shut = passed_open, passed_shut
    return _Behind(reader.name, if_open, if_shut, units.is_open)


def _passed(setting: Setting, known: Knowledge, step: Node, arriving: Tensor, position: int) -> Tensor | None:
    """A derivative carried to one input of an operation; None where that is not known."""
    if isinstance(step.kind, BatchStatisticsNorm):
        # Of several steps the sums of each would be needed, and the delta has those of all together.
        return None if setting.steps is not None else derivative_in_front(setting, known, step, arriving)
    nothing = [torch.zeros(len(arriving), *setting.graph.shape(name), dtype=arriving.dtype) for name in step.inputs]
    through = by_step.cotangents(setting, known, step, arriving, nothing)
    return None if through is None else through[position]


def _switched(
    setting: Setting, node: Node, gradient: Tensor, entering: Known, arriving: Known, behind: _Behind
) -> Tensor | None:
    """Units that are on the other side; None where there are none."""
    theirs = gradient.detach().cpu().double().flatten(1)
    if not setting.effort.affords(6.0 * theirs.numel() * len(entering.values) * prod(node.shape[1:])):
        return None
    (made,) = node.kind.gradients(arriving.values, [entering.values], setting.graph.tensors_of(node), ["weight"])
    left = made.flatten(1) - theirs
    chosen = deviant(left.norm(dim=1), theirs.norm(dim=1)).nonzero()[:, 0]
    patches = patches_of(node, entering.values) if len(chosen) else None
    if patches is None:
        return None
    # One row for each place, as a solution has them.
    if_open, if_shut, open_now = (
        one[:, chosen].transpose(0, 1).flatten(1).T for one in (behind.if_open, behind.if_shut, behind.is_open)
    )
    flips, over = torch.zeros_like(open_now), left[chosen].T
    solved = solve_derivative(patches, gradient[chosen]) if determine(patches) else None
    if solved is not None:
        seen = (if_open - if_shut).abs() > _SEEN * solved.deviation
        nearer = (solved.values - if_open).abs() < (solved.values - if_shut).abs()
        open_then = torch.where(seen, nearer, open_now)
        after = patches.T @ torch.where(open_then, if_open, if_shut) - theirs[chosen].T
        flips = (open_then != open_now) & (after.norm(dim=0) <= _EXPLAINED * over.norm(dim=0))
    change = torch.where(open_now, if_shut - if_open, if_open - if_shut)
    flips = torch.where(flips.any(dim=0), flips, pursued_units(patches, over, change, _EXPLAINED))
    switched = torch.zeros_like(behind.is_open)
    switched[:, chosen] = flips.T.reshape(len(chosen), len(entering.values), *node.shape[1:]).transpose(0, 1)
    return switched if bool(switched.any()) else None

"""The rule that gives the input of a convolution whose channels are in groups, from its weight gradient.

Each group g is a convolution of its own: the gradient of its weights is linear in its own input channels, with the
derivative by its own outputs as coefficients, and so is solved as `convolution_input` solves one of a single group.
That is done group by group; what the solutions leave of the gradients is looked at of all groups together and of the
worst one.

Rank, in each group: ``N <= k^2 C_out / groups``; behind a stride of two each class of even and odd places has to have
enough of its own (3x3: ``N_out <= C_out / groups`` for places with even row and column). Where a group is one channel,
as in depthwise convolutions, that is a handful of places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import prod

import torch
from torch import Tensor

from ..graph import Node
from ..graph.rectified import is_rectified
from ..kinds import Convolution
from ..refusals import Refused, Why
from .convolution_input import as_maps, is_told, places_of_value, shown
from .equations import OVERDETERMINED, Solution, gradient_equations, most_places, operations_of, solve
from .knowledge import Knowledge, Known
from .rule import Derived, Setting

RULE = "convolution input in groups"


def grouped_input(setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
    """Inputs of convolutions in groups whose output's derivative is known, the smallest first."""
    graph = setting.graph
    wanted = [
        node
        for node in graph.nodes
        if isinstance(node.kind, Convolution)
        and node.kind.groups > 1
        and known.complete(node.inputs[0]) is None
        and is_told(setting, known, node)
    ]
    for node in sorted(wanted, key=lambda node: places_of_value(setting, node.inputs[0])):
        given = (known.activations.get(node.inputs[0]), known.arriving[node.name])
        # Others may read the same value.
        rule = f"{RULE} of {node.name}"
        found = setting.effort.once(rule, node.inputs[0], given, partial(_attempt, setting, known, node))
        if found is not None:
            yield found


def _attempt(setting: Setting, known: Knowledge, node: Node) -> Derived | Refused | None:
    """None where nobody would expect equations enough: those of a depthwise convolution are as many as its kernel."""
    assert isinstance(node.kind, Convolution)
    value, groups = node.inputs[0], node.kind.groups
    places, channels = places_of_value(setting, value), setting.graph.shape(value)[0] // groups
    outputs = node.shape[0] // groups
    rows = outputs * prod(node.kind.kernel)
    if rows < OVERDETERMINED * places:
        return None if channels == 1 else Refused(RULE, value, Why.FEW_EQUATIONS, places, int(rows / OVERDETERMINED))
    if places > most_places(node.kind, outputs):
        return Refused(RULE, value, Why.LARGE, places, most_places(node.kind, outputs))
    if not setting.effort.affords(groups * operations_of(places, rows, channels)):
        return Refused(RULE, value, Why.COST, places)
    solutions = _solutions(setting, known, node)
    if solutions is None:
        return Refused(RULE, value, Why.OPEN, places, int(rows / OVERDETERMINED))
    return _believed(setting, known, value, solutions, {"places": float(places), "equations": float(rows)})


def _solutions(setting: Setting, known: Knowledge, node: Node) -> list[Solution] | None:
    """Of each group; None where one is singular."""
    assert isinstance(node.kind, Convolution)
    gradient, arriving = setting.gradient(node.name, "weight"), known.arriving[node.name].values
    assert gradient is not None
    kind, size = replace(node.kind, groups=1), setting.graph.shape(node.inputs[0])[1:]
    found = []
    for part, own in zip(gradient.chunk(node.kind.groups), arriving.chunk(node.kind.groups, dim=1), strict=True):
        # A group of which nothing arrives says nothing of its input.
        one = solve([gradient_equations(kind, (size[0], size[1]), part, own)]) if bool(part.any()) else None
        if one is None:
            return None
        found.append(one)
    return found


def _believed(
    setting: Setting, known: Knowledge, value: str, solutions: list[Solution], checks: dict[str, float]
) -> Derived | Refused:
    shape = (setting.image_count, *setting.graph.shape(value))
    values, deviation = (_side_by_side([getattr(one, name) for one in solutions], shape) for name in _TENSORS)
    found = Known(values, torch.ones_like(values, dtype=torch.bool), deviation, "gradient")
    found = known.solved(shown(found, is_rectified(setting.graph, value)))
    checks |= {"misfit": max(one.misfit for one in solutions)}
    checks |= {"channels left out": float(sum(one.left_out for one in solutions))}
    worst = max(float(found.error.max()), checks["misfit"])
    if not worst <= setting.tolerance:
        return Refused(RULE, value, Why.INEXACT, int(checks["places"]), int(checks["equations"]), error=worst)
    return Derived(RULE, value, known.with_activations(value, found), checks, notable=True)


_TENSORS = ("values", "deviation")


def _side_by_side(rows: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Places by channels of each group, as maps of all channels."""
    images, channels, height, width = shape
    return as_maps(torch.cat(rows, dim=1), (images, channels, height, width))

"""The rule that gives a convolution's input where batch norm on the batch's own statistics stands behind it.

See `statistics_equations` for the equations, `statistics_fixed_point` for how they are solved, and `statistics_scale`
for the one number that they leave open. Conditions: the derivative behind each batch norm is known, and ``N <= sum of
C_out k^2``, with a stride of two for each class of even and odd places (as in `convolution_input`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..graph import Node
from ..graph.rectified import is_rectified
from ..kinds import Convolution, Needs
from ..layers import sizes
from ..refusals import Refused, Why
from .batch_statistics import behind_batch_statistics
from .channel_sums import shift_gradients
from .equations import OVERDETERMINED, affordable, operations_of
from .knowledge import Knowledge, Known
from .passing import through
from .rule import Derived, Setting
from .statistics_equations import Reader, levels_unseen
from .statistics_fixed_point import State, begin, rounds
from .statistics_reader import reader_of
from .statistics_scale import Scale, scale_by_known, scale_by_shift

RULE = "input before batch statistics"

# Rounds of the fixed point before the scale is known, after, and with all that it rests on off by its error.
_BEFORE, _AFTER, _AGAIN = 30, 5, 6
# How often the scale is told: eps is held against it.
_SCALED = 2
# A level that no equation sees is where the least units are zero: so many within this share of the root mean square.
_LEAST_UNITS, _ALIKE = 2, 1e-4


def statistics_input(setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
    """Inputs of convolutions with such a batch norm behind, the smallest first."""
    graph = setting.graph
    wanted = [name for name in graph.by_name if _worth_trying(setting, known, name)]
    for value in sorted(wanted, key=lambda name: _places(setting, name)):
        behind = [found.name for node in graph.readers(value) if (found := behind_batch_statistics(graph, node))]
        beside = [node.name for node in graph.readers(value)]
        given = (known.activations.get(value), *map(known.arriving.get, (*behind, *beside)))
        given += tuple(map(known.activations.get, behind))
        yield setting.effort.once(RULE, value, given, partial(_attempt, setting, known, value))


def _places(setting: Setting, value: str) -> int:
    _, height, width = setting.graph.shape(value)
    return setting.image_count * height * width


def _worth_trying(setting: Setting, known: Knowledge, value: str) -> bool:
    if known.complete(value) is not None or len(setting.graph.shape(value)) != 3:
        return False
    return any(_is_told(setting, known, node) for node in setting.graph.readers(value))


def _is_told(setting: Setting, known: Knowledge, node: Node) -> bool:
    """Whether the equations of a convolution are known, and affordable."""
    kind, behind = node.kind, behind_batch_statistics(setting.graph, node)
    if not isinstance(kind, Convolution) or behind is None or setting.gradient(node.name, "weight") is None:
        return False
    arriving = known.arriving.get(behind.name)
    places = _places(setting, node.inputs[0])
    return arriving is not None and arriving.complete and affordable(kind, places, node.shape[0])


def _attempt(setting: Setting, known: Knowledge, value: str) -> Derived | Refused:
    graph, places = setting.graph, _places(setting, value)
    nodes = [node for node in graph.readers(value) if _is_told(setting, known, node)]
    every = [reader_of(setting, known, node) for node in nodes]
    readers = _adding_up(every, places)
    rows, shape = sum(one.rows for one in readers), (setting.image_count, *graph.shape(value))
    if rows < OVERDETERMINED * places:
        return Refused(RULE, value, Why.FEW_EQUATIONS, places, int(rows / OVERDETERMINED))
    if not setting.effort.affords((_BEFORE + _AFTER + _AGAIN) * operations_of(places, rows, shape[1])):
        return Refused(RULE, value, Why.COST, places)
    levels = levels_unseen(readers, (shape[2], shape[3]))
    # Only behind a rectifier a level that is in no equation has a least value.
    state = (
        rounds(readers, begin(readers, shape), levels, _BEFORE) if not levels or is_rectified(graph, value) else None
    )
    scale = None
    for _ in range(_SCALED):
        scale = None if state is None else _scale(setting, known, nodes, _levelled(state.values, levels)[0], value)
        if state is None or scale is None:
            return Refused(RULE, value, Why.OPEN, places, rows)
        state = replace(state, values=state.values * scale.factor, scale=state.scale * scale.factor)
        state = rounds(readers, state, levels, _AFTER)
    if state is None or scale is None or state.found is None:
        return Refused(RULE, value, Why.OPEN, places, rows)
    found = known.solved(_known(readers, state, levels, scale))
    checks = {"places": places, "equations": rows, "misfit": state.found.misfit, "scale": scale.misfit}
    checks |= {"channels left out": sum(len(r.weight) for r in every) - sum(len(r.weight) for r in readers)}
    worst = max(float(found.error.max()), state.found.misfit, scale.misfit)
    if not worst <= setting.tolerance:
        return Refused(RULE, value, Why.INEXACT, places, rows, error=worst)
    return Derived(RULE, value, known.with_activations(value, found), checks, notable=True)


def _adding_up(readers: list[Reader], places: int) -> list[Reader]:
    """Without the output channels whose derivative has another sum than was sent, where enough are left: beside few
    equations more than unknowns, a unit on the wrong side does not stand out in what these leave."""
    fewer = [one.of_outputs(one.adds_up) for one in readers]
    enough = sum(one.rows for one in fewer) >= OVERDETERMINED * places and all(len(one.weight) for one in fewer)
    return fewer if enough else readers


def _known(readers: Sequence[Reader], state: State, levels: Sequence[Tensor], scale: Scale) -> Known:
    """The input with its errors."""
    assert state.found is not None
    values, doubt = _levelled(state.values, levels)
    shape = values.shape
    moved = _moved(readers, state, levels)[:, None, None, None]
    spread = (state.found.amplified[:, None] * state.found.left * state.unit).reshape(shape[0], *shape[2:], -1)
    spread = spread.permute(0, 3, 1, 2).maximum(moved).expand_as(values)
    deviation = (spread.square() + (scale.error * values).square() + doubt.square()).sqrt()
    return Known(values, torch.ones_like(values, dtype=torch.bool), deviation, RULE)


def _scale(setting: Setting, known: Knowledge, nodes: Sequence[Node], values: Tensor, value: str) -> Scale | None:
    """By units that are known, or else by the gradient in front; None where neither tells it."""
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


def _levelled(values: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """With each channel's level on classes of places that no equation tells, and the doubt about it.

    Behind a rectifier the least units are zero. A channel in which no two units are least alike may have none.
    """
    doubt = torch.zeros_like(values)
    if not levels:
        return values, doubt
    values, size = values.clone(), float(values.square().mean().sqrt())
    for level in levels:
        chosen = level.reshape(len(values), 1, *values.shape[2:]).bool().expand_as(values)
        some = torch.where(chosen, values, torch.inf)
        least = some.amin(dim=(0, 2, 3), keepdim=True)
        near = some <= least + _ALIKE * size
        count = near.sum(dim=(0, 2, 3), keepdim=True)
        mean = torch.where(near, values, 0.0).sum(dim=(0, 2, 3), keepdim=True) / count
        unsure = (count < _LEAST_UNITS) & chosen
        doubt = torch.where(unsure, (values - mean).abs().amax(dim=(0, 2, 3), keepdim=True), doubt)
        values = torch.where(chosen, values - mean, values)
    return values, doubt


def _moved(readers: Sequence[Reader], state: State, levels: Sequence[Tensor]) -> Tensor:
    """By how much each image moves with all that the equations rest on off by its error: root mean square.

    Errors of the derivative show in what is left of the equations, where they are not the length of an image.
    """
    random = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random, dtype=torch.float64)

    assert state.found is not None
    shaken = []
    for one in readers:
        off = max(one.rounding, state.found.misfit)
        gradient, derivative = (
            given + off * given.square().mean().sqrt() * noise(given) for given in (one.gradient, one.derivative)
        )
        told = one.told + torch.where(one.is_told, one.spread * noise(one.told), 0.0)
        shaken.append(replace(one, gradient=gradient, derivative=derivative, told=told))
    again = rounds(shaken, replace(state, rounds=0), levels, _AGAIN)
    if again is None:
        return torch.full((len(state.values),), torch.inf, dtype=torch.float64)
    return sizes(_levelled(again.values, levels)[0] - _levelled(state.values, levels)[0])

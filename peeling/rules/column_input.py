"""The rule that gives what enters a block without a skip: its pointwise convolution's input, whose output's derivative
is known up to which units were open.

See `rows.column_space` for the units. Those that the linear programs leave on the wrong side show once the input
follows by least squares: the input goes forward, and its own units take their place, until nothing changes. It is
believed only where a pass forward to the next value that is known gives that value again.

Rank: ``N = B H W <= min(C_in, C_out)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..graph import Node
from ..kinds import BatchNorm, Identity, Rectifier
from ..layers import LARGEST, relative
from ..refusals import Refused, Why
from ..rows.block import is_pointwise
from ..rows.column_space import open_by_columns
from .knowledge import Knowledge, Known, evenly
from .rule import Derived, Setting

RULE = "column space"

# Operations of the linear programs, as a multiple of (places)^3 (channels).
_PROGRAMS = 1500.0
MOST_PLACES = 128
"""Beyond this many the programs take minutes."""
_ROUNDS = 8
_LEAST_ERROR = 5e-7
# A row of the gradient that leaves so many times what a usual one does has a unit on the wrong side; the others have to
# be so many times the places. Solutions that count rows by what they leave, before some are left out.
_STANDS_OUT, _SPARE, _REWEIGHTED = 10.0, 1.5, 12


@dataclass(frozen=True)
class _Read:
    """A pointwise convolution and the rectifier that its output reaches."""

    node: Node
    between: tuple[Node, ...]
    rectifier: Node


def column_input(setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
    """Inputs of pointwise convolutions in front of a rectifier of unknown units, those with the fewest places first."""
    if setting.steps is not None:
        return
    wanted = [read for node in setting.graph.nodes if (read := _read(setting, known, node)) is not None]
    for read in sorted(wanted, key=lambda one: _places(setting, one.node)):
        value, places, most = read.node.inputs[0], _places(setting, read.node), _most(setting, read.node)
        if places > most:
            why = Why.LARGE if most == MOST_PLACES else Why.FEW_EQUATIONS
            yield Refused(RULE, value, why, places, most)
            continue
        arriving = known.arriving[read.rectifier.name]
        yield setting.effort.once(RULE, value, (arriving,), partial(_attempt, setting, known, read))


def _places(setting: Setting, node: Node) -> int:
    return setting.image_count * math.prod(node.shape[1:])


def _most(setting: Setting, node: Node) -> int:
    return min(setting.graph.shape(node.inputs[0])[0], node.shape[0], MOST_PLACES)


def _read(setting: Setting, known: Knowledge, node: Node) -> _Read | None:
    """None where the input is known already, or the derivative behind the rectifier is not."""
    if not is_pointwise(node) or known.complete(node.inputs[0]) is not None:
        return None
    if setting.gradient(node.name, "weight") is None or node.name in known.arriving:
        return None
    between: list[Node] = []
    value = node.name
    while True:
        readers = setting.graph.readers(value)
        if len(readers) != 1:
            return None
        (reader,) = readers
        if isinstance(reader.kind, Rectifier):
            break
        if not isinstance(reader.kind, BatchNorm | Identity):
            return None
        between.append(reader)
        value = reader.name
    arriving = known.arriving.get(reader.name)
    if arriving is None or not arriving.complete or known.complete(reader.name) is not None:
        return None
    return _Read(node, tuple(between), reader)


def _attempt(setting: Setting, known: Knowledge, read: _Read) -> Derived | Refused:
    value, places = read.node.inputs[0], _places(setting, read.node)
    gradient = setting.gradient(read.node.name, "weight")
    assert gradient is not None
    if not setting.effort.affords(_PROGRAMS * places**3 * len(gradient)):
        return Refused(RULE, value, Why.COST, places)
    unmasked = _by_output(setting, read, known.arriving[read.rectifier.name].values)
    is_open = open_by_columns(gradient, _rows(unmasked))
    if isinstance(is_open, Why):
        return Refused(RULE, value, is_open, places)
    given = gradient.detach().cpu().double().flatten(1)
    flat, entering, mended = _rows(unmasked), torch.empty(0), 0
    for _ in range(_ROUNDS):
        cotangents = flat * is_open
        entering = _entering(cotangents, given)
        after = _rows(read.rectifier.kind.is_open(_to_rectifier(setting, read, _maps(setting, read, entering))))
        if bool((after == is_open).all()):
            break
        mended, is_open = int((after != is_open).sum()), after
    maps = _maps(setting, read, entering)
    misfit = relative(cotangents.T @ entering - given, given)
    passed = _contradiction(setting, known, read, maps)
    if passed is None:
        return Refused(RULE, value, Why.OPEN, places)
    error = (LARGEST * passed).clamp_min(max(_LEAST_ERROR, misfit))
    if not float(error.max()) <= setting.tolerance:
        return Refused(RULE, value, Why.INEXACT, places, error=float(error.max()))
    checks = {
        "places": places,
        "equations": _most(setting, read.node),
        "misfit": misfit,
        "pass": float(passed.max()),
        "mended": mended,
    }
    found = known.with_activations(value, known.solved(evenly(maps, error, RULE)))
    return Derived(RULE, value, found, checks, notable=True)


def _entering(cotangents: Tensor, given: Tensor) -> Tensor:
    """The input by least squares over the rows of the gradient, one for each channel. A unit on the wrong side spoils
    one row alone, and that stands out: it is left out, else its error enters every place and puts others on the wrong
    side, more in each round."""
    entering: Tensor = torch.linalg.lstsq(cotangents.T, given).solution
    told = given.any(dim=1) | cotangents.any(dim=0)  # a dead channel's row says nothing
    rows, own = cotangents[:, told], given[told]
    left = _left(rows, own, entering)
    if float(left.max()) <= _STANDS_OUT * float(left.median()):
        return entering
    for _ in range(_REWEIGHTED):
        # Sums of lengths in the place of their squares are least where few rows are off.
        weights = 1 / left.clamp_min(float(left.median())).clamp_min(1e-12 * float(own.norm()))
        found = torch.linalg.lstsq((rows * weights).T, own * weights[:, None]).solution
        left = _left(rows, own, found)
    good = left <= _STANDS_OUT * left.median()
    if int(good.sum()) < _SPARE * len(cotangents):
        return entering
    return torch.linalg.lstsq(rows[:, good].T, own[good]).solution


def _left(cotangents: Tensor, given: Tensor, entering: Tensor) -> Tensor:
    """What an input leaves of each row of the gradient."""
    return (cotangents.T @ entering - given).norm(dim=1)


def _rows(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _maps(setting: Setting, read: _Read, rows: Tensor) -> Tensor:
    _, height, width = read.node.shape
    return rows.reshape(setting.image_count, height, width, -1).permute(0, 3, 1, 2).contiguous()


def _by_output(setting: Setting, read: _Read, arriving: Tensor) -> Tensor:
    """The derivative by the convolution's output if every unit were open."""
    for node in reversed(read.between):
        (arriving,) = node.kind.cotangents(arriving, [torch.zeros_like(arriving)], setting.graph.tensors_of(node))
    return arriving


def _to_rectifier(setting: Setting, read: _Read, entering: Tensor) -> Tensor:
    values = entering
    for node in (read.node, *read.between, read.rectifier):
        values = node.kind.forward([values], setting.graph.tensors_of(node))
    return values


def _contradiction(setting: Setting, known: Knowledge, read: _Read, entering: Tensor) -> Tensor | None:
    """By how much of its length each image's next known rectifier differs from what this input makes of it; None
    where there is none that it alone leads to."""
    graph = setting.graph
    values, name = _to_rectifier(setting, read, entering), read.rectifier.name
    while True:
        readers = graph.readers(name)
        if len(readers) != 1 or len(readers[0].inputs) != 1:
            return None
        (node,) = readers
        values, name = node.kind.forward([values], graph.tensors_of(node)), node.name
        complete: Known | None = known.complete(name)
        if complete is not None:
            size = complete.values.flatten(1).norm(dim=1).clamp_min(1e-300)
            return (values - complete.values).flatten(1).norm(dim=1) / size

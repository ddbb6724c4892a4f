"""What follows without a gradient: activations forwards and backwards, derivatives backwards and forwards.

- Forwards: an operation whose inputs are known gives its output.
- Backwards: where a rectifier was open its input is its output; batch norm on running statistics is undone channel by
  channel; where a sum and one part of it are known, the other part is their difference.
- The derivative by a value is the sum of what comes through each operation that reads it. Through a linear one it
  comes whatever the activations; a skip therefore passes it on without its input being known.
- Where a value is read by one batch norm or one sum only, the derivative by its output follows from that by the value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..graph import Node
from ..kinds import Needs, Told
from . import by_step
from .knowledge import Knowledge, Known, evenly, merged
from .rule import Derived, Setting

# A unit of a rectifier is surely open where its output is so many deviations above zero, and below a ceiling; also with
# a checksum that has seen it. The input of one that is taken for open and was shut may have been any negative number,
# and deviations are estimates, which may be off by some times.
_SURELY = 50.0


def forwards(setting: Setting, known: Knowledge) -> Iterator[Derived]:
    """Activations behind an operation whose inputs are known."""
    for node in setting.graph.nodes:
        entering = [known.complete(name) for name in node.inputs]
        if node.kind.needs is Needs.UNKNOWN or known.complete(node.name) is not None or not all(entering):
            continue
        given = [one for one in entering if one is not None]
        values = by_step.forward(setting, known, node, [one.values for one in given])
        shaken = by_step.forward(setting, known.with_other_weights, node, [one.shaken() for one in given])
        if values is None or shaken is None:
            continue
        error = _moved(values, shaken).maximum(torch.stack([one.error for one in given]).amax(dim=0))
        found = evenly(values, error, "forwards")
        yield Derived("forwards", node.name, known.with_activations(node.name, found))


def _moved(values: Tensor, shaken: Tensor) -> Tensor:
    """By how much of its length each image differs. Errors that are independent an operation may enlarge beside its
    numbers, as where these cancel; those that an image's numbers share it leaves as large as they are."""
    return (shaken - values).flatten(1).norm(dim=1) / values.flatten(1).norm(dim=1).clamp_min(1e-300)


def backwards(setting: Setting, known: Knowledge) -> Iterator[Derived]:
    """Activations in front of an operation that can be undone, where its output is known."""
    for node in setting.graph.nodes:
        output = known.activations.get(node.name)
        if output is None:
            continue
        for position, name in enumerate(node.inputs):
            before = known.activations.get(name)
            if before is not None and before.complete:
                continue
            found = _undone(setting, known, node, position, output)
            if found is None or not bool((found.known & ~(_nothing(found) if before is None else before.known)).any()):
                continue
            yield Derived("backwards", name, known.with_activations(name, merged(before, found)))


def _nothing(like: Known) -> Tensor:
    return torch.zeros_like(like.known)


def _undone(setting: Setting, known: Knowledge, node: Node, position: int, output: Known) -> Known | None:
    values, deviation = output.values, output.deviation.expand_as(output.values)
    if node.kind.needs is Needs.OUTPUT:
        units, sure = known.units.get(node.name), surely_open(node, output) & output.known
        sure = sure if units is None else sure & units.is_open
        return Known(values * sure, sure, deviation, "backwards")
    name = node.inputs[position]
    channels = [setting.graph.shape(one)[0] for one in node.inputs]
    parts = [node.kind.split(one, channels) for one in (values, output.known, deviation)]
    if all(part is not None for part in parts):
        values, told_of, spread = (part[position] for part in parts if part is not None)
        return Known(values, told_of, spread, "backwards")
    beside = [known.activations.get(other) for other in node.inputs if other != name]
    others = [Told(one.values, one.known, one.deviation.expand_as(one.values)) for one in beside if one is not None]
    if node.inputs.count(name) > 1 or len(others) < len(beside):
        return None
    told = by_step.inverse(setting, known, node, values, deviation, others)
    return None if told is None else _known(told, output.known, (len(values), *setting.graph.shape(name)), "backwards")


def surely_open(rectifier: Node, output: Known) -> Tensor:
    """Units that were open however far off their outputs may be."""
    margin = _SURELY * output.deviation.expand_as(output.values)
    return rectifier.kind.is_open(output.values - margin) & rectifier.kind.is_open(output.values + margin)


def _known(told: Told, before: Tensor, shape: tuple[int, ...], rule: str) -> Known:
    """What is told by numbers of which some were known before."""
    seen = before & told.heard
    values = torch.where(seen, told.values, 0.0)
    return Known(values.reshape(shape), seen.reshape(shape), told.spread.reshape(shape), rule)


def derivatives(setting: Setting, known: Knowledge) -> Iterator[Derived]:
    """The derivative by a value, from those by the outputs of everything that reads it."""
    graph = setting.graph
    for value in (node.name for node in graph.nodes):
        readers = graph.readers(value)
        if value in known.arriving or value == graph.output or not readers:
            continue
        parts = [through(setting, known, reader, value) for reader in readers]
        if any(part is None for part in parts):
            continue
        found = _total([part for part in parts if part is not None])
        yield Derived("derivatives", value, known.with_arriving(value, found))


def through(setting: Setting, known: Knowledge, reader: Node, value: str) -> Known | None:
    """What of the derivative by a value comes through one operation."""
    arriving = known.arriving.get(reader.name)
    if arriving is None or not arriving.complete or reader.kind.needs is Needs.UNKNOWN:
        return None
    error = arriving.error
    if reader.kind.needs is Needs.OUTPUT:
        units = known.units.get(reader.name)
        if units is None:
            return None
        passed = arriving.values * units.is_open
        size = passed.flatten(1).norm(dim=1).clamp_min(1e-300)
        wrong = (units.wrong * arriving.values.square()).flatten(1).sum(dim=1).sqrt() / size
        # Of which image it is does not show.
        unexplained = known.unexplained[reader.name] / size
        return evenly(passed, (error.square() + wrong.square() + unexplained.square()).sqrt(), "derivatives")
    shapes = [(setting.image_count, *setting.graph.shape(name)) for name in reader.inputs]
    inputs = shaken_inputs = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    if reader.kind.needs is Needs.INPUTS:
        entering = [known.complete(name) for name in reader.inputs]
        if not all(entering):
            return None
        inputs = [one.values for one in entering if one is not None]
        shaken_inputs = [one.shaken(1) for one in entering if one is not None]
    parts = by_step.cotangents(setting, known, reader, arriving.values, inputs)
    moved = by_step.cotangents(setting, known.with_other_weights, reader, arriving.shaken(), shaken_inputs)
    if parts is None or moved is None:
        return None
    passed, shaken = (_by_value(one, reader, value) for one in (parts, moved))
    return evenly(passed, error.maximum(_moved(passed, shaken)), "derivatives")


def _by_value(parts: Sequence[Tensor], reader: Node, value: str) -> Tensor:
    """The derivative by a value that enters an operation once or more."""
    return torch.stack([part for part, name in zip(parts, reader.inputs, strict=True) if name == value]).sum(dim=0)


def _total(parts: Sequence[Known]) -> Known:
    values = torch.stack([part.values for part in parts]).sum(dim=0)
    variance = torch.stack([part.deviation.expand_as(values).square() for part in parts]).sum(dim=0)
    return Known(values, torch.ones_like(values, dtype=torch.bool), variance.sqrt(), "derivatives")


def derivatives_forwards(setting: Setting, known: Knowledge) -> Iterator[Derived]:
    """The derivative by an operation's output, from that by its input."""
    graph = setting.graph
    for node in graph.nodes:
        if node.name in known.arriving or not node.inputs:
            continue
        for name in node.inputs:
            arriving = known.arriving.get(name)
            if arriving is None or graph.readers(name) != (node,) or node.inputs.count(name) > 1:
                continue
            found = _carried(setting, known, node, arriving)
            if found is not None:
                yield Derived("derivatives forwards", node.name, known.with_arriving(node.name, found))
                break


def _carried(setting: Setting, known: Knowledge, node: Node, arriving: Known) -> Known | None:
    spread = arriving.deviation.expand_as(arriving.values)
    told = by_step.carried(setting, known, node, arriving.values, spread)
    if told is None or not bool(told.heard.all()):
        return None
    return _known(told, arriving.known, (setting.image_count, *node.shape), "derivatives forwards")

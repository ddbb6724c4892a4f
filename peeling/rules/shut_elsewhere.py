"""The output of a rectifier whose input is known where another one was open, and is held back where that was shut.

In a dense network a value is read again and again: each layer has its own batch norm and rectifier on all values so
far, side by side. One rectifier's output tells what enters where its units were open, and bounds it elsewhere: ``scale
x + shift <= 0``. Where the bound keeps another rectifier's input at zero or below too, its output is zero there,
whatever the value is. So its output is known at every unit, and what lies behind follows.

Condition: batch norms on running statistics, and at each unit that is not known a bound that the other batch norm keeps
below zero, as where both have the same threshold in that channel, or the other's is higher.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..graph import Node
from ..kinds import BatchNorm, Concatenation, Rectifier
from ..kinds.batch_norm import over_channels
from ..layers import LARGEST, sizes
from .knowledge import Knowledge, Known, evenly
from .rule import Derived, Setting

RULE = "units shut elsewhere"


def shut_elsewhere(setting: Setting, known: Knowledge) -> Iterator[Derived]:
    """Outputs of rectifiers behind batch norm, of which every unit is told by another rectifier that reads the same."""
    if setting.steps is not None:  # each visit has thresholds of its own
        return
    graph = setting.graph
    for node in graph.nodes:
        if not isinstance(node.kind, Rectifier) or known.complete(node.name) is not None:
            continue
        norm = graph.by_name.get(node.inputs[0])
        if norm is None or not isinstance(norm.kind, BatchNorm):
            continue
        found = _output(setting, known, node, norm)
        if found is not None:
            yield Derived(RULE, node.name, known.with_activations(node.name, found))


def _output(setting: Setting, known: Knowledge, node: Node, norm: Node) -> Known | None:
    """None where a unit is neither known nor bounded."""
    entering = _parts(setting, known, norm.inputs[0])
    if entering is None or bool(entering.known.all()):
        return None
    scale, shift = (over_channels(one, entering.values) for one in _affine(setting, norm))
    output = node.kind.forward([entering.values * scale + shift], {})
    output = torch.where(entering.known, output, 0.0)
    noise = (entering.deviation * scale.abs() * (entering.known & (output > 0))).flatten(1).norm(dim=1)
    error = noise / output.flatten(1).norm(dim=1).clamp_min(1e-300)
    # What is shut elsewhere is so up to the error of what enters.
    margin = LARGEST * (error * sizes(output)).reshape(-1, *(1 for _ in output.shape[1:]))
    highest = torch.where(scale > 0, scale * _highest(setting, known, norm.inputs[0], like=output) + shift, torch.inf)
    return evenly(output, error, RULE) if bool((entering.known | (highest <= margin)).all()) else None


def _parts(setting: Setting, known: Knowledge, value: str) -> Known | None:
    """What is known of a value, or of those that lie side by side in it; None where of one nothing is."""
    found, node = known.activations.get(value), setting.graph.by_name.get(value)
    if node is None or not isinstance(node.kind, Concatenation) or (found is not None and found.complete):
        return found
    parts = [known.activations.get(name) for name in node.inputs]
    told = [part for part in parts if part is not None]
    if len(told) < len(parts):
        return None
    values, where, spread = (
        torch.cat(some, dim=1)
        for some in (
            [part.values for part in told],
            [part.known for part in told],
            [part.deviation.expand_as(part.values) for part in told],
        )
    )
    return Known(values, where, spread, RULE)


def _highest(setting: Setting, known: Knowledge, value: str, like: Tensor) -> Tensor:
    """What a value is at most, by the rectifiers that read it; infinite where none tells."""
    graph = setting.graph
    found = like.new_full((len(like), *graph.shape(value)), torch.inf)
    for reader in graph.readers(value):
        if isinstance(reader.kind, Rectifier):
            output = known.complete(reader.name) if reader.name in known.units else None
            if output is not None:
                shut = ~known.units[reader.name].is_open & (output.values <= 0)
                found = torch.where(shut, found.clamp_max(0), found)
        elif isinstance(reader.kind, BatchNorm):
            found = found.minimum(_through(setting, known, reader, like))
    node = graph.by_name.get(value)
    # Each of the values side by side may be bounded by others that read it.
    if node is not None and isinstance(node.kind, Concatenation):
        beside = [_by_joined(setting, known, name, like) for name in node.inputs]
        found = found.minimum(torch.cat(beside, dim=1))
    return found


def _by_joined(setting: Setting, known: Knowledge, value: str, like: Tensor) -> Tensor:
    """What a value is at most, by what reads it, by itself or side by side with others."""
    graph = setting.graph
    found = _highest(setting, known, value, like)
    for reader in graph.readers(value):
        if not isinstance(reader.kind, Concatenation) or reader.inputs.count(value) > 1:
            continue
        for behind in graph.readers(reader.name):
            if isinstance(behind.kind, BatchNorm):
                bound = _through(setting, known, behind, like)
                part = reader.kind.split(bound, [graph.shape(name)[0] for name in reader.inputs])
                assert part is not None
                found = found.minimum(part[reader.inputs.index(value)])
    return found


def _through(setting: Setting, known: Knowledge, norm: Node, like: Tensor) -> Tensor:
    """What enters a batch norm at most, by the rectifiers behind."""
    behind = _highest(setting, known, norm.name, like)
    scale, shift = (over_channels(one, behind) for one in _affine(setting, norm))
    return torch.where(scale > 0, (behind - shift) / scale.clamp_min(1e-300), torch.inf)


def _affine(setting: Setting, norm: Node) -> tuple[Tensor, Tensor]:
    assert isinstance(norm.kind, BatchNorm)
    return norm.kind.affine(setting.graph.tensors_of(norm))

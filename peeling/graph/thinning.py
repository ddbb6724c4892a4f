"""A graph without the places that nothing reads.

A 1x1 convolution of stride 2 sees one of four places of its input. Where that is all that reads a value, as in
residual networks whose blocks begin with the stride, the other places are in no equation: no loss depends on them and
no gradient tells them. What works on every place by itself (batch norm, rectifier, sum, 1x1 convolution) is the same
on the places that are read alone, and a larger convolution whose output is read so is one with that stride. So the
value, and all in front of it that nothing else reads, is replaced by its places that count; weight gradients are the
same, since the derivative by the others is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..kinds import BatchNorm, Convolution, Identity, Rectifier, Subsample, Sum
from .nodes import Graph, Node

_EACH_PLACE = (BatchNorm, Rectifier, Sum, Identity)


def thinned(graph: Graph) -> Graph:
    """The same network on the places that are read.

    Args:
        graph: Confirmed; values keep their names.
    """
    steps = _steps(graph)
    if not steps:
        return graph
    nodes, added = list[Node](), set[str]()
    for node in graph.nodes:
        step = steps.get(node.name, 1)
        inputs = list(node.inputs)
        if step > 1 and not isinstance(node.kind, Convolution):
            for position, name in enumerate(inputs):
                if steps.get(name, 1) == step:
                    continue
                inputs[position] = f"{name}, every {step}"
                if inputs[position] not in added:
                    added.add(inputs[position])
                    shape = _thin(graph.shape(name), step)
                    nodes.append(Node(inputs[position], Subsample(step), (name,), shape))
        kind = node.kind
        if isinstance(kind, Convolution):
            read = steps.get(node.inputs[0], 1)
            stride = (kind.stride[0] * step // read, kind.stride[1] * step // read)
            kind = replace(kind, stride=stride)
        shape = _thin(node.shape, step) if step > 1 else node.shape
        nodes.append(Node(node.name, kind, tuple(inputs), shape, node.tensors))
    return replace(graph, nodes=tuple(nodes))


def _thin(shape: tuple[int, ...], step: int) -> tuple[int, ...]:
    channels, height, width = shape
    return channels, -(-height // step), -(-width // step)


def _steps(graph: Graph) -> Mapping[str, int]:
    """Values of which only every second place, or third, along both sides is read."""
    found: dict[str, int] = {}
    for node in reversed(graph.nodes):
        if not isinstance(node.kind, (Convolution, *_EACH_PLACE)) or len(node.shape) != 3 or node.name == graph.output:
            continue
        read = {_read(reader, found) for reader in graph.readers(node.name)}
        step = read.pop() if len(read) == 1 else 1
        if step > 1:
            found[node.name] = step
    return found


def _read(reader: Node, steps: Mapping[str, int]) -> int:
    """Of which places along a side an operation reads every so many-th."""
    step = steps.get(reader.name, 1)
    if isinstance(reader.kind, Convolution):
        alone = reader.kind.kernel == (1, 1) and reader.kind.padding == (0, 0)
        return step * reader.kind.stride[0] if alone and reader.kind.stride[0] == reader.kind.stride[1] else 1
    return step if isinstance(reader.kind, _EACH_PLACE) else 1

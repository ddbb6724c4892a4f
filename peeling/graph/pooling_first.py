"""A graph in which values are averaged before a 1x1 convolution and not after it.

Both orders give the same numbers: a mean over places and a map of channels do not see each other. But the derivative
behind the mean is the same at all places of a window, so that the convolution's weight gradient tells its input's mean
over each window and nothing else. With the mean in front that is an equation in one unknown for each window, and the
unknowns that no gradient tells apart are gone (the transitions of DenseNet).
"""

from __future__ import annotations

from dataclasses import astuple, replace

from ..kinds import AverageInFront, AveragePool, Convolution
from .nodes import Graph, Node


def pooled_first(graph: Graph) -> Graph:
    """The same network; the value between the two is gone, the others keep their names and their numbers.

    Args:
        graph: Confirmed.
    """
    nodes, moved = list[Node](), dict[str, str]()
    for node in graph.nodes:
        if node.name in moved:
            continue
        mean = _mean_behind(graph, node)
        inputs = tuple(moved.get(name, name) for name in node.inputs)
        if mean is None:
            nodes.append(replace(node, inputs=inputs))
            continue
        shape = (graph.shape(node.inputs[0])[0], *mean.shape[1:])
        kind = AverageInFront(*astuple(mean.kind))
        averaged = Node(f"{inputs[0]}, averaged for {node.name}", kind, inputs, shape)
        nodes += [averaged, replace(node, inputs=(averaged.name,), shape=mean.shape)]
        moved[mean.name] = node.name
    return replace(graph, nodes=tuple(nodes))


def _mean_behind(graph: Graph, node: Node) -> Node | None:
    """The average pooling that alone reads a 1x1 convolution, where both orders are the same."""
    kind, readers = node.kind, graph.readers(node.name)
    if not isinstance(kind, Convolution) or kind.kernel != (1, 1) or kind.padding != (0, 0) or kind.stride != (1, 1):
        return None
    if len(readers) != 1 or not isinstance(readers[0].kind, AveragePool) or readers[0].name == graph.output:
        return None
    pool = readers[0].kind
    # With zeros around, or windows cut off at the edge, a bias would be averaged otherwise.
    return readers[0] if pool.padding == (0, 0) and not pool.ceil else None

"""A block with a skip whose last convolution is pointwise and reads a depthwise one, as phones' networks have them."""

from __future__ import annotations

from dataclasses import dataclass

from ..graph import Graph, Node
from ..kinds import BatchNorm, Convolution, Identity, Rectifier, Sum


@dataclass(frozen=True)
class Block:
    """``sum = entering + project(rectified(depthwise(rectified(expand(entering)))))``, batch norms in between."""

    expand: Node
    """The pointwise convolution that reads what enters."""
    to_hidden: tuple[Node, ...]
    """From there to the rectifier in front of the depthwise convolution, which is the last of them."""
    depthwise: Node
    to_inner: tuple[Node, ...]
    """Behind the depthwise convolution, up to the rectifier whose output the last convolution reads."""
    project: Node
    to_sum: tuple[Node, ...]
    """Behind the last convolution, up to the sum, without it."""
    sum: Node
    following: Node
    """A pointwise convolution that reads the sum."""

    @property
    def entering(self) -> str:
        """The value that enters."""
        return self.expand.inputs[0]

    @property
    def inner(self) -> str:
        """The value that the last convolution reads."""
        return self.project.inputs[0]


def is_pointwise(node: Node) -> bool:
    """Whether an operation is a 1x1 convolution of all channels that sees each place by itself."""
    kind = node.kind
    if not isinstance(kind, Convolution):
        return False
    return kind.kernel == (1, 1) and kind.stride == (1, 1) and kind.padding == (0, 0) and kind.groups == 1


def is_depthwise(graph: Graph, node: Node) -> bool:
    """Whether an operation is a depthwise convolution that keeps the grid, its kernel in the middle of each place."""
    kind = node.kind
    if not isinstance(kind, Convolution) or kind.stride != (1, 1) or kind.dilation != (1, 1):
        return False
    centred = all(side % 2 == 1 and by == side // 2 for side, by in zip(kind.kernel, kind.padding, strict=True))
    return centred and kind.groups == node.shape[0] == graph.shape(node.inputs[0])[0]


def find_block(graph: Graph, project: Node) -> Block | None:
    """The block that a pointwise convolution is the last one of; None where it is of another form.

    Args:
        graph: The network.
        project: The convolution.
    """
    inner = graph.by_name.get(project.inputs[0])
    if not is_pointwise(project) or inner is None or graph.readers(inner.name) != (project,):
        return None
    spatial = _back(graph, inner)
    hidden = None if spatial is None else graph.by_name.get(spatial[0].inputs[0])
    if spatial is None or hidden is None or not is_depthwise(graph, spatial[0]):
        return None
    local = _back(graph, hidden)
    if local is None or not is_pointwise(local[0]):
        return None
    forth, joined = _forth(graph, project)
    if joined is None or set(joined.inputs) != {local[0].inputs[0], forth[-1].name if forth else project.name}:
        return None
    following = next((node for node in graph.readers(joined.name) if is_pointwise(node)), None)
    if following is None:
        return None
    return Block(local[0], local[1:], spatial[0], spatial[1:], project, forth, joined, following)


def _back(graph: Graph, rectifier: Node) -> tuple[Node, ...] | None:
    """From a rectifier back to the convolution whose output enters it, both with all in between, in order; None where
    something else lies in between or reads from it."""
    found = [rectifier]
    if not isinstance(rectifier.kind, Rectifier):
        return None
    while not isinstance(found[0].kind, Convolution):
        (name,) = found[0].inputs
        node = graph.by_name.get(name)
        if node is None or graph.readers(name) != (found[0],):
            return None
        if not isinstance(node.kind, Convolution | BatchNorm | Identity):
            return None
        found.insert(0, node)
    return tuple(found)


def _forth(graph: Graph, project: Node) -> tuple[tuple[Node, ...], Node | None]:
    """Behind a convolution up to a sum, and the sum; None where there is none."""
    found: list[Node] = []
    node = project
    while True:
        readers = graph.readers(node.name)
        if len(readers) != 1:
            return tuple(found), None
        (node,) = readers
        if isinstance(node.kind, Sum):
            return tuple(found), node
        if not isinstance(node.kind, BatchNorm | Identity):
            return tuple(found), None
        found.append(node)

"""What running a part of a network costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..kinds import Convolution, Linear
from .nodes import Graph


def operations(graph: Graph, values: Sequence[str]) -> float:
    """Floating-point operations of one image up to these values: those of convolutions and linear layers, which are
    nearly all."""
    needed = frozenset[str]().union(*(graph.before(value) for value in values))
    total = 0.0
    for node in graph.nodes:
        if node.name in needed and isinstance(node.kind, Convolution | Linear):
            weight = graph.tensors[node.tensors["weight"]]
            total += 2.0 * weight[0].numel() * math.prod(node.shape)
    return total

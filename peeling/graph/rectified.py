"""Which values are never negative."""

from __future__ import annotations

from ..kinds import AveragePool, Concatenation, MaxPool, Rectifier
from .nodes import Graph


def is_rectified(graph: Graph, value: str) -> bool:
    """Whether a value is the output of a rectifier, or made of such side by side or by pooling."""
    node = graph.by_name.get(value)
    if node is None:
        return False
    if isinstance(node.kind, MaxPool | AveragePool | Concatenation):
        return all(is_rectified(graph, name) for name in node.inputs)
    return isinstance(node.kind, Rectifier)

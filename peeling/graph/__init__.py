"""A network as a graph of operations in closed form, confirmed on a probe."""

from .confirm import network_graph
from .nodes import Graph, Node, NoGraph

__all__ = ["Graph", "NoGraph", "Node", "network_graph"]

"""Why the last convolution of a block is none whose rows are found, where the block has the form but for one thing."""

from __future__ import annotations

from ..graph import Graph, Node
from ..kinds import BatchNorm, BatchStatisticsNorm, Convolution, Identity, Opaque, Rectifier
from ..refusals import Why


def barred(graph: Graph, project: Node) -> Why | None:
    """What is in the way; None where it is no 1x1 convolution behind a depthwise one, or nothing is that is known.

    Args:
        graph: The network.
        project: The convolution.
    """
    kind, why = project.kind, None
    if not isinstance(kind, Convolution) or kind.kernel != (1, 1):
        return None
    if kind.groups > 1:
        why = Why.ROWS_IN_GROUPS
    name = project.inputs[0]
    while (node := graph.by_name.get(name)) is not None and not isinstance(node.kind, Convolution):
        if isinstance(node.kind, Opaque):
            why = why or Why.NO_ZEROS
        elif isinstance(node.kind, BatchStatisticsNorm):
            why = why or Why.CENTRED
        elif not isinstance(node.kind, BatchNorm | Identity | Rectifier):
            return None
        name = node.inputs[0]
    depthwise = node is not None and isinstance(node.kind, Convolution) and node.kind.groups == node.shape[0] > 1
    return why if depthwise else None

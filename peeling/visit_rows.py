"""Single places of a client's visits, from the weight delta of one 1x1 convolution, where no tap gives whole visits.

They are known up to their lengths, and not whose they are, so that no rule can go on from them; they are shown beside
what peeling derives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .graph import Graph, Node
from .graph.rectified import is_rectified
from .local_steps import LocalSteps
from .record import LoosePlaces
from .recording import place_words, reader_of
from .rows import MOST_LOOSE, LooseRows, find_loose_rows
from .rows.block import is_pointwise
from .rules.rule import Setting

# Convolutions that are tried.
_MOST_TRIED = 3
# Operations of the linear programs, as a multiple of (places)^3 (channels).
_PROGRAMS = 6000.0


@dataclass(frozen=True)
class VisitRows:
    """What was found at one convolution."""

    rows: LooseRows
    recorded: LoosePlaces
    """For a reader."""


def rows_of_visits(
    graph: Graph, summed: Mapping[str, Tensor], steps: LocalSteps, tolerance: float, operations: float
) -> VisitRows | None:
    """Of the convolution of which most is found; None where nothing is.

    Args:
        graph: The network, in evaluation mode.
        summed: Of all steps' gradients, by parameter (`LocalSteps.summed`).
        steps: What the client did.
        tolerance: The largest estimated error that is believed.
        operations: Floating-point operations that it may cost.
    """
    setting = Setting(graph, summed, steps.visit_count, tolerance, steps=steps)
    nodes = [node for node in graph.nodes if _crowding(setting, node) <= 1]
    nodes.sort(key=lambda node: _crowding(setting, node))
    best: VisitRows | None = None
    for node in nodes[:_MOST_TRIED]:
        places = _places(setting, node)
        gradient, deviation = setting.gradient(node.name, "weight"), setting.deviation(node.name, "weight")
        cost = _PROGRAMS * places**3 * node.shape[0]
        if gradient is None or deviation is None or cost > operations:
            continue
        operations -= cost
        found = find_loose_rows(gradient, deviation, places, tolerance)
        if not isinstance(found, LooseRows) or (best is not None and len(found.error) <= best.recorded.count):
            continue
        best = VisitRows(found, _recorded(setting, node, found))
        if best.recorded.count == found.places:
            break
    return best


def _places(setting: Setting, node: Node) -> int:
    return setting.image_count * node.shape[1] * node.shape[2]


def _crowding(setting: Setting, node: Node) -> float:
    """Places of all visits for each that is told apart; infinite where rows are not looked for."""
    if not is_pointwise(node) or not is_rectified(setting.graph, node.inputs[0]):
        return float("inf")
    if setting.gradient(node.name, "weight") is None:
        return float("inf")
    channels = min(setting.graph.shape(node.inputs[0])[0], node.shape[0]) - 1
    return _places(setting, node) / max(min(channels, MOST_LOOSE), 1)


def _recorded(setting: Setting, node: Node, found: LooseRows) -> LoosePlaces:
    graph, value = setting.graph, node.inputs[0]
    return LoosePlaces(
        value=value,
        place=place_words(graph, value),
        reader=reader_of(graph, value),
        shape=graph.shape(value),
        places=found.places,
        errors=tuple(float(one) for one in found.error),
    )

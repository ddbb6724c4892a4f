"""How many different images a gradient shows, by the taps of its convolutions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .graph import Graph
from .kinds import Convolution
from .rules.rule import Setting
from .rules.tap_foothold import has_taps
from .visits_seen import visits_seen


def images_shown(graph: Graph, gradients: Mapping[str, Tensor], stated: int) -> int | None:
    """How many images the weight gradients of convolutions are sums over: the most that one of them shows.

    Equal images are one there, and an image that the network is sure of may be none.

    Args:
        graph: The network.
        gradients: Captured, by parameter.
        stated: Images of the batch, by the facts.

    Returns:
        None where the rank of none shows it.
    """
    setting = Setting(graph, gradients, stated, 1.0)
    found = []
    for node in graph.nodes:
        if not has_taps(setting, node) or not isinstance(node.kind, Convolution) or node.kind.groups > 1:
            continue
        gradient = setting.gradient(node.name, "weight")
        _, height, width = graph.shape(node.inputs[0])
        if gradient is not None and height * width < min(gradient.shape[:2]):
            shown = visits_seen(gradient, (height, width))
            found += [shown.visits] if shown else []
    return max(found, default=None)

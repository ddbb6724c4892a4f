"""The cut: the values nearest to the images whose activations are all known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..graph import Graph, Node
from ..graph.rectified import is_rectified
from ..kinds import AveragePool, BatchNorm, BatchStatisticsNorm, MaxPool, Opaque, Rectifier
from ..rules import Derivation

# A unit is surely open whose value is so many deviations above zero.
_SURELY = 5.0


@dataclass(frozen=True)
class Place:
    """One rectifier, or a pool of such, whose output is known for every image."""

    rectifier: str
    before: str
    """The value that enters it, of a pool the output itself: equal to the output where a unit was surely open, and not
    below it where a ceiling held it back. Of the others it is known above zero alone."""
    values: Float[Tensor, "image channel height width"]
    is_open: Bool[Tensor, "image channel height width"]
    """Units whose output no error explains. One that is believed open by mistake may lie far below zero, and a single
    one holds a descent fast."""
    deviation: Float[Tensor, "image channel height width"]
    error: Float[Tensor, " image"]
    """Estimated, relative."""
    ceiling: float = math.inf
    """Of the rectifier."""

    @property
    def is_held(self) -> Bool[Tensor, "image channel height width"]:
        """Units that a ceiling held back: what enters them is not below their value."""
        return ~self.is_open & (self.values >= self.ceiling)

    def in_order(self, order: Int[Tensor, " image"]) -> Place:
        """The same with the images in another order; see `Cut.in_order`."""
        return replace(
            self,
            values=self.values[order],
            is_open=self.is_open[order],
            deviation=self.deviation[order],
            error=self.error[order],
        )


@dataclass(frozen=True)
class Cut:
    """Places that together stand between the images and all that is known."""

    graph: Graph
    places: tuple[Place, ...]

    def forward(
        self, dtype: torch.dtype, device: torch.device, others: Sequence[str] = ()
    ) -> Callable[[Tensor], list[Tensor]]:
        """A function from images, as the model is given them, to the values in front of the places' rectifiers, and to
        others on the way there."""
        nodes = self._nodes
        like = torch.empty(0, dtype=dtype, device=device)
        tensors = {node.name: self.graph.tensors_of(node, like) for node in nodes}
        # What no later operation reads is let go of.
        last = {name: node.name for node in nodes for name in node.inputs}
        wanted = [*(place.before for place in self.places), *others]

        def run(images: Tensor) -> list[Tensor]:
            values = {self.graph.images: images}
            for node in nodes:
                values[node.name] = node.kind.forward([values[name] for name in node.inputs], tensors[node.name])
                for name in set(node.inputs):
                    if last[name] == node.name and name not in wanted:
                        del values[name]
            return [values[name] for name in wanted]

        return run

    def features(self, dtype: torch.dtype, device: torch.device) -> Callable[[Tensor], list[Tensor]]:
        """A function from images, as the model is given them, to what the places' rectifiers make of them."""
        run = self.forward(dtype, device)

        def features_of(images: Tensor) -> list[Tensor]:
            pairs = zip(run(images), self.places, strict=True)
            return [value.clamp(0, place.ceiling) for value, place in pairs]

        return features_of

    @property
    def _nodes(self) -> list[Node]:
        """Operations between the images and the places."""
        needed = frozenset[str]().union(*(self.graph.before(place.before) for place in self.places))
        return [node for node in self.graph.nodes if node.name in needed]

    @property
    def is_pooled(self) -> bool:
        """Whether a maximum lies in front of a place: of what enters it the features tell the winners alone."""
        return any(isinstance(node.kind, MaxPool) for node in self._nodes)

    @property
    def is_coupled(self) -> bool:
        """Whether an image's features depend on the other images, by batch norm on the batch's own statistics."""
        return any(isinstance(node.kind, BatchStatisticsNorm) for node in self._nodes)

    def on_statistics(self, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> Cut:
        """The same cut with batch norms on these statistics in the place of the batch's own.

        Args:
            statistics: Mean and variance of each channel, by the batch norm's name; one that is missing stays as it is.
        """
        nodes, tensors = list[Node](), dict(self.graph.tensors)
        for node in self.graph.nodes:
            kind = node.kind
            if isinstance(kind, BatchStatisticsNorm) and node.name in statistics:
                names = {role: f"{node.name}, {role} of the batch" for role in ("mean", "variance")}
                tensors |= dict(zip(names.values(), statistics[node.name], strict=True))
                node = replace(node, kind=BatchNorm(kind.eps), tensors={**node.tensors, **names})
            nodes.append(node)
        return Cut(replace(self.graph, nodes=tuple(nodes), tensors=tensors), self.places)

    def in_order(self, order: Int[Tensor, " image"]) -> Cut:
        """The same features with the images in another order, and without what lies behind.

        Args:
            order: For each place in the new order, the image of the old one.
        """
        nodes = tuple(self._nodes)
        names = {name for node in nodes for name in node.tensors.values()}
        tensors = {name: tensor for name, tensor in self.graph.tensors.items() if name in names}
        graph = replace(self.graph, nodes=nodes, tensors=tensors, trained=self.graph.trained & names)
        return Cut(graph, tuple(place.in_order(order) for place in self.places))


@dataclass(frozen=True)
class NoCut:
    """There is none that images could be found from."""

    why: str
    """One sentence."""


def features_off(
    found: Float[Tensor, "*unit"],
    target: Float[Tensor, "*unit"],
    is_open: Bool[Tensor, "*unit"],
    is_held: Bool[Tensor, "*unit"],
) -> Float[Tensor, "*unit"]:
    """By how much values in front of a rectifier differ from what is known of them.

    Args:
        found: The values.
        target: The rectifier's output.
        is_open: Units that were surely open.
        is_held: Units that a ceiling held back: only what is below it counts. Of all others, what is above zero.
    """
    off = found - target
    return torch.where(is_open, off, torch.where(is_held, off.clamp_max(0), found.clamp_min(0) - target))


def find_cut(derivation: Derivation) -> Cut | NoCut:
    """The places that a path from the images reaches without passing another one."""
    graph, known = derivation.graph, derivation.knowledge
    complete = [node for node in graph.nodes if known.complete(node.name) is not None and _may_be_place(graph, node)]
    complete = [node for node in complete if node.name in known.units or not isinstance(node.kind, Rectifier)]
    if not complete:
        return NoCut("the features of no place are known for every image")
    names = {node.name for node in complete}
    reached = {graph.images}
    for node in graph.nodes:
        if any(value in reached and value not in names for value in node.inputs):
            reached.add(node.name)
    places = []
    for node in complete:
        found = known.complete(node.name)
        if node.name not in reached or found is None or len(node.shape) != 3:
            continue
        units = known.units.get(node.name)
        spread = found.deviation.expand_as(found.values)
        is_open = (found.values > _SURELY * spread) & (found.values > 0 if units is None else units.is_open)
        before = node.inputs[0] if isinstance(node.kind, Rectifier) else node.name
        ceiling = node.kind.ceiling if isinstance(node.kind, Rectifier) else math.inf
        places.append(Place(node.name, before, found.values.clamp_min(0), is_open, spread, found.error, ceiling))
    opaque = _opaque_before(graph, [place.before for place in places])
    if opaque:
        return NoCut(f"{opaque} in front of it cannot be computed in closed form")
    return Cut(graph, tuple(places))


def _may_be_place(graph: Graph, node: Node) -> bool:
    """Whether a value is a rectifier's, or pooled from such: it is its own part above zero then."""
    pooled = isinstance(node.kind, MaxPool | AveragePool) and is_rectified(graph, node.name)
    return pooled or isinstance(node.kind, Rectifier)


def _opaque_before(graph: Graph, values: Sequence[str]) -> str | None:
    needed = frozenset[str]().union(*(graph.before(value) for value in values))
    return next((node.name for node in graph.nodes if node.name in needed and isinstance(node.kind, Opaque)), None)

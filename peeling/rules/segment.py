"""A segment of the graph: from one value that is not known to the nearest ones that are, with all that is said of it.

Every path from the segment's input to a known rectifier's output lies in it, or begins at something known. Of the input
x are then told, together: the values in front of those rectifiers (equal to the output where a unit was open, not above
zero elsewhere), and the gradients of all parameters in between, since the derivative behind them is known. Rectifiers
in between are of unknown units: with soft ones all of it is smooth in x, and with units that are given it is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..graph import Graph, Node
from ..graph.rectified import is_rectified
from ..kinds import BatchNorm, Convolution, Needs, Rectifier
from .knowledge import Knowledge
from .rule import Setting

Rectify = Callable[[str, Tensor], Tensor]
"""What a rectifier in between makes of what enters it, by its name."""


@dataclass(frozen=True)
class End:
    """A rectifier whose output is known, and the derivative by what enters it."""

    rectifier: str
    before: str
    """What enters it."""
    target: Tensor
    deviation: Tensor
    is_open: Tensor
    passed: Tensor
    """The derivative by the output: that in front is the same where a unit was open, and else zero."""

    @property
    def arriving(self) -> Tensor:
        """The derivative by what enters it."""
        return self.passed * self.is_open


@dataclass(frozen=True)
class Given:
    """The gradient of one parameter in between."""

    node: str
    role: str
    gradient: Tensor
    softened: bool
    """Whether a rectifier in between stands behind it, so that its gradient depends on units that are not known."""


@dataclass(frozen=True)
class Segment:
    """All tensors are in float32, which is what gradients are in."""

    graph: Graph
    value: str
    image_count: int
    nodes: tuple[Node, ...]
    """Between the input and the ends, in an order in which they can be run."""
    known: Mapping[str, Tensor]
    """Other values that enter."""
    ends: tuple[End, ...]
    given: tuple[Given, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input, with the images."""
        return (self.image_count, *self.graph.shape(self.value))

    @cached_property
    def rectifiers(self) -> tuple[str, ...]:
        """Those in between whose units are not known."""
        ends = {end.before for end in self.ends}
        return tuple(
            node.name for node in self.nodes if isinstance(node.kind, Rectifier) and not ends & set(node.inputs)
        )

    @cached_property
    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Parameters and buffers of each operation by role."""
        return {node.name: self.graph.tensors_of(node, torch.empty(0)) for node in self.nodes}

    @cached_property
    def parameters(self) -> tuple[Tensor, ...]:
        """Those whose gradients are given, in their order."""
        return tuple(self.tensors[one.node][one.role] for one in self.given)

    def run(
        self,
        entering: Tensor,
        rectify: Rectify,
        parameters: Sequence[Tensor] | None = None,
        added: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Every value in between.

        Args:
            entering: The segment's input.
            rectify: For the rectifiers in between.
            parameters: In the place of the network's own, those whose gradients are given.
            added: To values in between, by name.
        """
        own = {name: dict(tensors) for name, tensors in self.tensors.items()}
        for one, tensor in zip(self.given, parameters or (), strict=parameters is not None):
            own[one.node][one.role] = tensor
        values = {**self.known, self.value: entering}
        for node in self.nodes:
            inputs = [values[name] for name in node.inputs]
            soft = node.name in self.rectifiers
            found = rectify(node.name, inputs[0]) if soft else node.kind.forward(inputs, own[node.name])
            values[node.name] = found + added[node.name] if added and node.name in added else found
        return values

    def told(
        self, entering: Tensor, rectify: Rectify, opened: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """What enters the ends' rectifiers, and the gradients of the parameters that are given.

        Args:
            entering: The segment's input.
            rectify: For the rectifiers in between.
            opened: In the place of the ends' own units.
        """

        with torch.enable_grad():
            parameters = [tensor.detach().requires_grad_() for tensor in self.parameters]
            values = self.run(entering, rectify, parameters)
            ends = [values[end.before] for end in self.ends]
            if not self.given:
                return ends, ()
            masks = opened if opened is not None else [end.is_open for end in self.ends]
            arriving = [end.passed * mask for end, mask in zip(self.ends, masks, strict=True)]
            return ends, torch.autograd.grad(ends, parameters, arriving, create_graph=True)

    def arriving(self, rectifier: str, entering: Tensor, rectify: Rectify) -> Tensor:
        """The derivative by the output of a rectifier in between, as the units behind it have it."""
        added = torch.zeros(self.image_count, *self.graph.shape(rectifier), requires_grad=True)
        with torch.enable_grad():
            values = self.run(entering, rectify, added={rectifier: added})
            ends = [values[end.before] for end in self.ends]
            (found,) = torch.autograd.grad(ends, added, [end.arriving for end in self.ends])
        return found


def find_segment(setting: Setting, known: Knowledge) -> Segment | None:
    """The segment that ends at the known values nearest to the images, with the input that is nearest to them."""
    graph = setting.graph
    ends = _ends(setting, known)
    if not ends:
        return None
    needed = frozenset[str]().union(*(graph.before(end.before) for end in ends))
    for value in reversed([node.name for node in graph.nodes if node.name in needed]):
        if known.complete(value) is not None or not is_rectified(graph, value):
            continue
        found = _between(setting, known, value, ends)
        if found is not None:
            return found
    return None


def _ends(setting: Setting, known: Knowledge) -> tuple[End, ...]:
    """Known rectifiers that a path from the images reaches without passing another one."""
    graph, found = setting.graph, list[End]()
    reached = {graph.images}
    for node in graph.nodes:
        if not any(name in reached for name in node.inputs):
            continue
        output, units = known.complete(node.name), known.units.get(node.name)
        if not isinstance(node.kind, Rectifier) or output is None or units is None:
            reached.add(node.name)
            continue
        passed = known.arriving.get(node.name)
        if passed is None or not passed.complete or len(node.shape) != 3:
            return ()
        target, spread = (output.values * units.is_open).float(), output.deviation.expand_as(output.values)
        found.append(End(node.name, node.inputs[0], target, spread.float(), units.is_open, passed.values.float()))
    return tuple(found)


def _between(setting: Setting, known: Knowledge, value: str, ends: Sequence[End]) -> Segment | None:
    """The segment with this input; None where something else enters that is not known, or cannot be worked with."""
    graph = setting.graph
    wanted, nodes, entering = [end.before for end in ends], dict[str, Node](), dict[str, Tensor]()
    while wanted:
        name = wanted.pop()
        node = graph.by_name.get(name)
        if name == value or name in nodes or name in entering:
            continue
        complete = known.complete(name)
        if complete is not None and not any(end.before == name for end in ends):
            entering[name] = complete.values.float()
        elif node is None or not _is_workable(node):
            return None
        else:
            nodes[name] = node
            wanted += node.inputs
    ordered = tuple(node for node in graph.nodes if node.name in nodes)
    inside = {end.before for end in ends}
    middle = [node for node in ordered if isinstance(node.kind, Rectifier) and not inside & set(node.inputs)]
    given = []
    for node in ordered:
        softened = any(node.name in graph.before(one.name) for one in middle)
        for role in ("weight", "bias"):
            gradient = setting.gradient(node.name, role)
            if gradient is not None and isinstance(node.kind, Convolution | BatchNorm):
                given.append(Given(node.name, role, gradient.detach().cpu().float(), softened))
    return Segment(graph, value, setting.image_count, ordered, entering, tuple(ends), tuple(given))


def _is_workable(node: Node) -> bool:
    if isinstance(node.kind, Rectifier):
        return node.kind.ceiling == float("inf")
    return node.kind.needs is Needs.NOTHING and len(node.shape) == 3

"""An inverted block of phones' networks: which operations it is of, as far as what lies behind them is known.

Expand, depthwise, project, with rectifiers of unknown units in between and a skip or none. It ends where everything
behind is known: at the output of its second rectifier, or else at its own output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..graph import Graph, Node
from ..kinds import BatchNorm, Convolution, Identity, Kind, Rectifier, Sum, ZeroPadding
from ..rows.block import is_pointwise
from .knowledge import Knowledge
from .rule import Setting

_LOCAL: tuple[type[Kind], ...] = (BatchNorm, Identity)


@dataclass(frozen=True)
class InvertedBlock:
    """Its operations in order."""

    expand: Node
    """The pointwise convolution that reads what enters."""
    first: tuple[Node, ...]
    """Behind it, up to the first rectifier, without it."""
    rectified: Node
    padding: tuple[Node, ...]
    """Between the first rectifier and the depthwise convolution."""
    depthwise: Node
    second: tuple[Node, ...]
    """Behind it, up to the second rectifier, without it."""
    hidden: Node
    """The second rectifier."""
    project: Node | None = None
    """The last convolution; None where the block is known from the second rectifier's output on."""
    third: tuple[Node, ...] = ()
    """Behind it, up to the end, without a sum."""
    skip: Node | None = None
    """The sum with what enters."""

    @property
    def entering(self) -> str:
        """The value that enters."""
        return self.expand.inputs[0]

    @property
    def end(self) -> str:
        """The value that is known."""
        if self.project is None:
            return self.hidden.name
        return (self.skip or (self.third[-1] if self.third else self.project)).name


def find_inverted(setting: Setting, known: Knowledge) -> Iterator[InvertedBlock]:
    """Every block whose end is known, with the derivative by it, and what enters it is not."""
    for node in setting.graph.nodes:
        if is_pointwise(node) and known.complete(node.inputs[0]) is None:
            found = _block(setting.graph, known, node)
            if found is not None:
                yield found


def _block(graph: Graph, known: Knowledge, expand: Node) -> InvertedBlock | None:
    first, rectified = _along(graph, expand, _LOCAL)
    if rectified is None or not isinstance(rectified.kind, Rectifier):
        return None
    padding, depthwise = _along(graph, rectified, (ZeroPadding, Identity))
    if depthwise is None or not _is_depthwise(graph, depthwise):
        return None
    second, hidden = _along(graph, depthwise, _LOCAL)
    if hidden is None or not isinstance(hidden.kind, Rectifier):
        return None
    block = InvertedBlock(expand, first, rectified, padding, depthwise, second, hidden)
    if hidden.name in known.units and _is_end(known, hidden.name):
        return block
    readers = graph.readers(hidden.name)
    if len(readers) != 1 or not is_pointwise(readers[0]):
        return None
    third, behind = _along(graph, readers[0], _LOCAL)
    last = third[-1].name if third else readers[0].name
    added = behind is not None and isinstance(behind.kind, Sum) and set(behind.inputs) == {block.entering, last}
    found = replace(block, project=readers[0], third=third, skip=behind if added else None)
    return found if _is_end(known, found.end) else None


def _along(graph: Graph, node: Node, kinds: tuple[type[Kind], ...]) -> tuple[tuple[Node, ...], Node | None]:
    """Operations of these kinds behind one, each the only reader of the one before, and what reads the last; None where
    several do."""
    found: list[Node] = []
    while True:
        readers = graph.readers((found[-1] if found else node).name)
        if len(readers) != 1:
            return tuple(found), None
        if not isinstance(readers[0].kind, kinds):
            return tuple(found), readers[0]
        found.append(readers[0])


def _is_depthwise(graph: Graph, node: Node) -> bool:
    kind = node.kind
    if not isinstance(kind, Convolution) or kind.dilation != (1, 1):
        return False
    return kind.groups == node.shape[0] == graph.shape(node.inputs[0])[0]


def _is_end(known: Knowledge, value: str) -> bool:
    arriving = known.arriving.get(value)
    return known.complete(value) is not None and arriving is not None and arriving.complete

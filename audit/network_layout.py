"""A network as rows of boxes: a residual block is one row with its skip beneath."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..peeling.record import NetworkNode

_WEIGHTED = ("convolution", "linear")
_NAMED = (*_WEIGHTED, "batch norm", "batch statistics norm")
# Operations behind a block's last one that belong to it.
_ENDING = ("rectifier", "batch norm", "identity")
# A block with more than so many operations one after another, or side by side, is cut into rows by the modules' names.
_LONGEST, _MOST_BRANCHES = 14, 4


@dataclass(frozen=True)
class Branch:
    """What runs beside the main path of a block."""

    nodes: tuple[NetworkNode, ...]
    """In order; none for a plain skip."""
    start: int
    """Column of the main path that it leaves from; -1: from what enters the block."""
    end: int
    """Column of the main path that it leads into."""


@dataclass(frozen=True)
class Row:
    """One block, or a few layers in a line."""

    title: str
    main: tuple[NetworkNode, ...]
    branches: tuple[Branch, ...] = ()
    whole: bool = True
    """Whether all connections are drawn."""


@dataclass
class _Rows:
    """Rows while layers are being added."""

    done: list[Row] = field(default_factory=list)
    line: list[NetworkNode] = field(default_factory=list)

    def close(self) -> None:
        if self.line:
            self.done.append(Row(_title(self.line), tuple(self.line)))
        self.line = []

    def add(self, node: NetworkNode) -> None:
        """A layer that all that comes behind depends on through itself alone."""
        if not self.line and self.done and self.done[-1].branches and node.kind in _ENDING:
            last = self.done[-1]
            self.done[-1] = Row(last.title, (*last.main, node), last.branches)
            return
        if node.kind in _WEIGHTED and any(one.kind in _WEIGHTED for one in self.line):
            self.close()
        self.line.append(node)
        if len(self.line) == _LONGEST:
            self.close()


def rows_of(nodes: Sequence[NetworkNode], images: str) -> list[Row]:
    """The rows, from the images to the output.

    Args:
        nodes: In an order in which the network runs them.
        images: Name of the value that the images are.
    """
    rows = _Rows()
    for part in _segments(nodes, images):
        if len(part) == 1:
            rows.add(part[0])
            continue
        rows.close()
        block = _block(part)
        rows.done += [block] if block is not None else _by_module(part)
    rows.close()
    return rows.done


def _segments(nodes: Sequence[NetworkNode], images: str) -> list[list[NetworkNode]]:
    """Cut behind each value that everything further on depends on through it alone."""
    position = {node.name: index for index, node in enumerate(nodes)}
    last = list(range(len(nodes)))
    of_images = 0
    for index, node in enumerate(nodes):
        for name in node.inputs:
            if name == images:
                of_images = max(of_images, index)
            elif name in position:
                last[position[name]] = max(last[position[name]], index)
    found: list[list[NetworkNode]] = []
    part: list[NetworkNode] = []
    reach = of_images
    for index, node in enumerate(nodes):
        part.append(node)
        if reach <= index:
            found.append(part)
            part = []
        reach = max(reach, last[index])
    return found + ([part] if part else [])


def _block(part: Sequence[NetworkNode]) -> Row | None:
    """Several paths between two values; None where they are too many to be drawn."""
    by_name = {node.name: node for node in part}
    main = _longest(part, by_name)
    if len(main) > _LONGEST:
        return None
    column = {node.name: index for index, node in enumerate(main)}
    left = {node.name: node for node in part if node.name not in column}
    branches = list(_skips(main, column, by_name))
    while left:
        line = _longest(list(left.values()), left)
        for node in line:
            del left[node.name]
        start = max((column.get(name, -1) for name in line[0].inputs), default=-1)
        ends = [index for index, node in enumerate(main) if line[-1].name in node.inputs]
        branches.append(Branch(tuple(line), start, min(ends, default=len(main) - 1)))
    return Row(_title(part), tuple(main), tuple(branches)) if len(branches) <= _MOST_BRANCHES else None


def _skips(main: Sequence[NetworkNode], column: Mapping[str, int], by_name: Mapping[str, NetworkNode]) -> list[Branch]:
    """Values that enter the main path past what lies in between."""
    found = []
    for index, node in enumerate(main):
        for name in node.inputs:
            start = column.get(name, -1)
            if start < index - 1 and (name in column or name not in by_name):
                found.append(Branch((), start, index))
    return found


def _longest(part: Sequence[NetworkNode], by_name: Mapping[str, NetworkNode]) -> list[NetworkNode]:
    """The longest path among these that ends in the last of them."""
    length: dict[str, int] = {}
    before: dict[str, str | None] = {}
    for node in part:
        inside = [name for name in node.inputs if name in by_name and name in length]
        best = max(inside, key=lambda name: length[name], default=None)
        before[node.name], length[node.name] = best, 1 + (0 if best is None else length[best])
    at: str | None = part[-1].name
    found: list[NetworkNode] = []
    while at is not None:
        found.append(by_name[at])
        at = before[at]
    return found[::-1]


def _by_module(part: Sequence[NetworkNode]) -> list[Row]:
    """Rows by the module that the layers are in; operations without a name belong to the layer before them."""
    found: list[tuple[str, list[NetworkNode]]] = []
    for node in part:
        owner = node.name.rpartition(".")[0] if node.kind in _NAMED else found[-1][0] if found else ""
        if not found or found[-1][0] != owner or len(found[-1][1]) == _LONGEST:
            found.append((owner, []))
        found[-1][1].append(node)
    return [Row(owner or _title(line), tuple(line), whole=False) for owner, line in found]


def _title(part: Sequence[NetworkNode]) -> str:
    """The module that these layers have in common; else the first of them."""
    names = [node.name for node in part if node.kind in _NAMED] or [part[0].name]
    if len(names) == 1:
        return names[0]
    paths = [name.split(".")[:-1] for name in names]
    common = []
    for words in zip(*paths, strict=False):
        if len(set(words)) > 1:
            break
        common.append(words[0])
    return ".".join(common) or names[0]

"""The diagram of the network: rows of boxes with what is known of each value, as numbers for the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..peeling.record import NetworkNode, PeelingRecord
from .network_layout import Branch, Row, rows_of

_PITCH, _BOX, _HEIGHT = 45, 39, 21
_LEFT, _TITLE, _BELOW, _GAP = 14, 17, 14, 9
_NARROWEST = 405
_SHORT = {
    "convolution": "conv",
    "batch norm": "norm",
    "batch statistics norm": "norm",
    "rectifier": "ReLU",
    "linear": "linear",
    "sum": "+",
    "concatenation": "join",
    "max pool": "max",
    "average pool": "mean",
    "adaptive average pool": "mean",
    "global mean": "mean",
    "reshape": "flat",
    "zero padding": "pad",
    "opaque": "?",
}
_LONGEST_TITLE = 36


@dataclass(frozen=True)
class Box:
    """One operation."""

    x: int
    y: int
    text: str
    note: str
    """What a pointer over it shows."""
    known: float
    """Width of the part that is filled."""
    derivative: float
    """Width of the bar beneath."""
    state: str
    """``exact``, ``part`` or ``none``."""
    ended: bool


@dataclass(frozen=True)
class Label:
    """Words above a row: its module on the left, the shape of its result on the right."""

    y: int
    title: str
    shape: str
    ended: bool


@dataclass
class Diagram:
    """Everything that is drawn."""

    width: int = _NARROWEST
    height: int = 0
    boxes: list[Box] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """Paths."""
    labels: list[Label] = field(default_factory=list)
    whole: bool = True
    """Whether all connections are drawn."""
    box_width: int = _BOX
    box_height: int = _HEIGHT


def draw_network(record: PeelingRecord) -> Diagram | None:
    """The diagram; None where the network could not be read."""
    if not record.nodes:
        return None
    ended = {record.ends[0].value} if record.ends else set()
    rows = rows_of(_without_identities(record.nodes, ended), record.images)
    diagram = Diagram(whole=all(row.whole for row in rows))
    longest = max(max(len(row.main), *(branch.end + 1 for branch in row.branches), 0) for row in rows)
    diagram.width = max(_NARROWEST, 2 * _LEFT + longest * _PITCH)
    whole = any(place.value == record.images for place in record.places)
    top = _Images(record, whole).draw(diagram)
    for row in rows:
        top = _draw_row(diagram, row, top, ended)
    diagram.height = top
    return diagram


def _without_identities(nodes: Sequence[NetworkNode], ended: set[str]) -> list[NetworkNode]:
    """Without what passes on what enters, unless that is where it ended or all there is."""
    same: dict[str, str] = {}
    kept = []
    for node in nodes:
        inputs = tuple(same.get(name, name) for name in node.inputs)
        if node.kind == "identity" and len(inputs) == 1 and node.name not in ended:
            same[node.name] = inputs[0]
        else:
            kept.append(replace(node, inputs=inputs))
    return kept or list(nodes)


@dataclass(frozen=True)
class _Images:
    """The images themselves: the first box."""

    record: PeelingRecord
    whole: bool

    def draw(self, diagram: Diagram) -> int:
        ended = bool(self.record.ends) and self.record.ends[0].value == self.record.images
        known = 1.0 if self.record.whole else 0.0
        node = NetworkNode(self.record.images, "images", (), (), known, 0.0)
        diagram.labels.append(Label(_TITLE - 5, "the images", "", ended))
        diagram.boxes.append(_box(node, _LEFT, _TITLE, ended, "pixels"))
        return _TITLE + _HEIGHT + _GAP


def _draw_row(diagram: Diagram, row: Row, top: int, ended: set[str]) -> int:
    """Returns where the next row begins."""
    names = {node.name for node in (*row.main, *(node for branch in row.branches for node in branch.nodes))}
    shape = " × ".join(map(str, row.main[-1].shape))
    title = row.title if len(row.title) <= _LONGEST_TITLE else f"…{row.title[1 - _LONGEST_TITLE :]}"
    diagram.labels.append(Label(top + _TITLE - 5, title, shape, bool(names & ended)))
    y = top + _TITLE
    middle = y + _HEIGHT // 2
    if row.whole:
        diagram.lines.append(f"M{_LEFT - 8} {middle}H{_x(len(row.main) - 1) + _BOX}")
    _draw_boxes(diagram, row.main, 0, y, ended)
    bottom = y + _HEIGHT
    for branch in row.branches:
        bottom = _draw_branch(diagram, branch, middle, y + _HEIGHT, bottom, ended)
    return bottom + _GAP


def _draw_branch(diagram: Diagram, branch: Branch, middle: int, under: int, bottom: int, ended: set[str]) -> int:
    height = _HEIGHT if branch.nodes else 2
    y = bottom + _BELOW - (4 if branch.nodes else 2)
    along = y + height // 2
    begin = _LEFT - 5 if branch.start < 0 else _x(branch.start) + _BOX + (_PITCH - _BOX) // 2
    end = _x(branch.end) + _BOX // 2
    diagram.lines.append(f"M{begin} {middle}V{along}H{end}V{under}")
    _draw_boxes(diagram, branch.nodes, branch.start + 1, y, ended)
    return y + height


def _draw_boxes(diagram: Diagram, nodes: Sequence[NetworkNode], column: int, y: int, ended: set[str]) -> None:
    for position, node in enumerate(nodes, column):
        text = _SHORT.get(node.kind, node.kind[:6])
        diagram.boxes.append(_box(node, _x(position), y, node.name in ended, text))


def _x(column: int) -> int:
    return _LEFT + column * _PITCH


def _box(node: NetworkNode, x: int, y: int, ended: bool, text: str) -> Box:
    state = "exact" if node.activations == 1 else "part" if node.activations > 0 else "none"
    # The least part is seen, and one that is not all is seen not to be.
    shown = node.activations if node.activations in (0, 1) else min(0.92, max(0.08, node.activations))
    return Box(x, y, text, _note(node), round(shown * _BOX, 1), round(node.derivative * _BOX, 1), state, ended)


def _note(node: NetworkNode) -> str:
    shape = " × ".join(map(str, node.shape))
    parts = [f"{node.name}, {node.kind}{f', {shape}' if shape else ''}"]
    if node.kind == "images":
        return "the images: determined" if node.activations else "the images: not determined"
    share = "all" if node.activations == 1 else "none" if not node.activations else f"{node.activations:.0%}"
    error = f" (estimated error {node.error:.1g})" if node.error is not None and node.activations else ""
    parts.append(f"activations known: {share}{error}")
    parts.append(f"derivative known: {'all' if node.derivative == 1 else f'{node.derivative:.0%}'}")
    return "; ".join(parts)

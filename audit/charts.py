"""Geometry of the page's plots. The template draws it as SVG, so every text passes its escaping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 72, 26, 12, 46
COLOURS = 8
"""Series with a colour of their own; further ones share a quiet grey."""
_HUGE = 1e100
"""Beyond this, or below its inverse, the arithmetic of an axis overflows; no loss worth a plot is there."""


@dataclass(frozen=True)
class Series:
    """One line of a plot."""

    name: str
    points: tuple[tuple[float, float] | None, ...]
    """In order of x; None ends one stretch and starts the next, as when a seed is restarted."""
    colour: int
    """0 to 7, or 8 for the quiet grey."""


@dataclass(frozen=True)
class Tick:
    """A position on an axis in SVG units, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A series as an SVG path."""

    name: str
    path: str
    colour: int


@dataclass(frozen=True)
class Chart:
    """A plot of lines over steps."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[float, ...]
    """Horizontal positions of the marked steps."""


@dataclass(frozen=True)
class Ruler:
    """PSNR of the floor, the agents, the consensus and the answer on one axis."""

    rows: tuple[tuple[str, str, tuple[float, ...]], ...]
    """Name, value as text, horizontal positions of its dots."""
    floor: float
    margin: float
    """Horizontal position from which a result counts as better than the floor."""
    ticks: tuple[Tick, ...]


def group_history(history: Iterable[Mapping[str, float]], term: str, seeds: Sequence[int]) -> list[Series]:
    """One series of ``term`` over steps per seed, interrupted where the seed was restarted or the value is not finite.

    Args:
        history: rows of the reconstruction, each with ``seed``, ``incarnation``, ``step`` and the loss terms.
        term: which loss.
        seeds: in the order in which colours are given.
    """
    points: dict[int, list[tuple[float, float] | None]] = {seed: [] for seed in seeds}
    last: dict[int, float] = {}
    for row in history:
        seed, incarnation = int(row["seed"]), row.get("incarnation", 0)
        if seed not in points or term not in row:
            continue
        if last.setdefault(seed, incarnation) != incarnation:
            points[seed].append(None)
        last[seed] = incarnation
        value = float(row[term])
        points[seed].append((float(row["step"]), value) if abs(value) < _HUGE else None)
    return [Series(f"seed {seed}", tuple(points[seed]), min(i, COLOURS)) for i, seed in enumerate(seeds)]


def draw_chart(
    series: Sequence[Series], title: str, y_label: str, *, marks: Iterable[float] = (), shares: bool = False
) -> Chart | None:
    """The plot of the series over steps, or None when there is nothing to draw.

    The vertical axis is logarithmic, or from 0 to 1 for ``shares``. Values of zero and below have no place on a
    logarithmic axis: if there is one, the axis is linear and says so.
    """
    values = [point for line in series for point in line.points if point is not None]
    if not values:
        return None
    low, high = min(y for _, y in values), max(y for _, y in values)
    logarithmic = low > 1 / _HUGE and not shares
    low, high = (min(low, 0.0), max(high, 1.0)) if shares else _pad(low, high, logarithmic)
    first, last = min(x for x, _ in values), max(x for x, _ in values)
    first = 0.0 if first < last / 2 or first == last else first
    last = last if last > first else first + 1

    def place_x(x: float) -> float:
        return round(LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def place_y(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if logarithmic else (y - low) / (high - low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    ticks = _log_ticks(low, high) if logarithmic else _linear_ticks(low, high)
    return Chart(
        title=title,
        x_label="step",
        y_label=y_label if shares else f"{y_label} ({'log' if logarithmic else 'linear'} scale)",
        lines=tuple(
            Line(line.name, _path([(place_x(p[0]), place_y(p[1])) if p else None for p in line.points]), line.colour)
            for line in series
        ),
        x_ticks=tuple(Tick(place_x(x), f"{x:,.0f}") for x in _linear_ticks(first, last, 5)),
        y_ticks=tuple(Tick(place_y(y), f"{y:.4g}") for y in ticks),
        marks=tuple(place_x(x) for x in marks if first <= x <= last),
    )


def draw_ruler(rows: Sequence[tuple[str, Sequence[float]]], floor: float, margin: float) -> Ruler | None:
    """The dots of each row on one dB axis, or None when no value is finite.

    Args:
        rows: name and values in dB, from top to bottom.
        floor: PSNR of the constant image in dB.
        margin: how far above the floor a result starts to count, in dB.
    """
    shown = [(name, [value for value in values if math.isfinite(value)]) for name, values in rows]
    values = [value for _, row in shown for value in row]
    if not values or not math.isfinite(floor):
        return None
    low, high = min(*values, floor) - 1.5, max(*values, floor + margin) + 1.5
    left, width = 112, 196

    def place(value: float) -> float:
        return round(left + (value - low) / (high - low) * width, 1)

    return Ruler(
        rows=tuple((name, _span(row), tuple(map(place, row))) for name, row in shown if row),
        floor=place(floor),
        margin=place(floor + margin),
        ticks=tuple(Tick(place(value), f"{value:g}") for value in _linear_ticks(low, high, 4)),
    )


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} – {high}"


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """SVG path data; a stretch of one point becomes a small ring, since a line of no length does not show."""
    stretches: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            stretches.append([])
        else:
            stretches[-1].append(point)
    rings = (f"M{s[0][0] - 3:g} {s[0][1]:g}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0" for s in stretches if len(s) == 1)
    lines = ("M" + "L".join(f"{x:g} {y:g}" for x, y in s) for s in stretches if len(s) > 1)
    return "".join((*lines, *rings))


def _pad(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    if logarithmic:
        room = (high / low) ** 0.06 if high > 1.01 * low else 2.0
        return low / room, high * room
    room = (high - low) * 0.06 or abs(high) * 0.05 or 0.5
    return low - room, high + room


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(ticks) >= 3:
            return ticks[:: -(-len(ticks) // 7)]
    return _linear_ticks(low, high)


def _linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]

"""Which change stops the leak, and which of them is the smallest: read off the cells, by rules that the page states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from ..capture.defences import DefenceError, parse_defences
from .grid import Axis, Grid, Kind
from .results import CellResult, State

ORDER = (
    "The smallest change alters the fewest settings; then a larger batch comes before another batch-norm mode, that "
    "before another key, and a defence comes last; then what costs less accuracy, where that was measured; then what "
    "stands first in its list. A change stops the leak where every cell with it, at every model state, was run to its "
    "end and shows no image leaked or weakly visible, and no stronger level of the same setting leaks."
)
_COSTS = {kind: position for position, kind in enumerate(Kind)}
# Of these a larger strength is more, of the others a smaller one; of further defences nothing is known.
_MORE_IS_STRONGER = ("noise", "prune", "dp_sgd", "soteria")
_LESS_IS_STRONGER = ("clip", "quantise")


class Effect(StrEnum):
    """What a combination of settings does."""

    STOPS = "no leak shown"
    UNPROVEN = "no leak shown, but a stronger level leaks"
    LEAKS = "leaks"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Change:
    """Another combination of settings, at all model states."""

    levels: tuple[int, ...]
    """By axis; on the axis of the state the base."""
    name: str
    """What is altered, in words."""
    effect: Effect
    leaked: int
    images: int
    accuracy: float | None
    """Points of accuracy that its defence costs, in [0, 1]; None where that was not measured."""


@dataclass(frozen=True)
class GridVerdict:
    """What the whole audit says."""

    leaks: bool | None
    """Whether the user's own settings leak; None where that is not known."""
    headline: str
    advice: str
    caution: str
    changes: tuple[Change, ...]
    """All combinations but the base, the smallest change first."""


def judge_grid(
    grid: Grid, results: Mapping[str, CellResult], accuracy: Mapping[str, float] | None = None
) -> GridVerdict:
    """The verdict on a grid.

    Args:
        grid: The cells that were to be run.
        results: By name of the cell; one that is missing was not run.
        accuracy: What each defence, by the name of its level, costs in accuracy, in [0, 1].
    """
    view = _View(grid, results)
    base = view.base()
    changes = tuple(sorted(view.changes(accuracy or {}), key=lambda change: _cost(grid, change)))
    leaked, weak, images = view.count(base)
    effect = view.effect(base)
    where = f"At your settings ({_describe(grid, base)})"
    if effect is Effect.UNKNOWN:
        return GridVerdict(None, f"{where} nothing is known", _unknown(view, base), _CAUTION, changes)
    if effect is Effect.LEAKS:
        shown = f"{leaked} of {images} images leak" if leaked else f"{weak} of {images} images are weakly visible"
        leaking = view.leaking_states(base)
        return GridVerdict(True, f"{where} {shown}{leaking}", _advice(grid, changes), _CAUTION, changes)
    return GridVerdict(False, f"{where} no image leak was shown", _elsewhere(changes), _CAUTION, changes)


_CAUTION = (
    "This is what the attack showed at this effort, on these images. A setting at which nothing leaked here is not "
    "proven safe: a stronger attack, other images or other weights may show more."
)


class _View:
    """The results by levels."""

    def __init__(self, grid: Grid, results: Mapping[str, CellResult]) -> None:
        self._grid = grid
        self._results = {cell.levels: results.get(cell.name) for cell in grid.cells}
        self._state = next((i for i, axis in enumerate(grid.axes) if axis.kind is Kind.STATE), None)

    def base(self) -> tuple[int, ...]:
        return self._grid.base

    def at_all_states(self, levels: tuple[int, ...]) -> list[CellResult | None]:
        return [self._results.get(place) for place in self._places(levels)]

    def _places(self, levels: tuple[int, ...]) -> list[tuple[int, ...]]:
        if self._state is None:
            return [levels]
        at, count = self._state, len(self._grid.axes[self._state].levels)
        return [(*levels[:at], state, *levels[at + 1 :]) for state in range(count)]

    def leaking_states(self, levels: tuple[int, ...]) -> str:
        """At which of several states it leaks, as the end of a sentence."""
        if self._state is None or len(self._grid.axes[self._state].levels) == 1:
            return ""
        parts = []
        for state, result in zip(self._grid.axes[self._state].levels, self.at_all_states(levels), strict=True):
            done = result is not None and result.state is State.DONE
            parts.append(f"{state.name}: {result.leaked} of {result.images}" if done and result else f"{state.name}: –")
        return f" ({'; '.join(parts)})"

    def count(self, levels: tuple[int, ...]) -> tuple[int, int, int]:
        """Images that leaked, that are weakly visible, and all, over the states that were run."""
        known = [one for one in self.at_all_states(levels) if one is not None and one.state is State.DONE]
        return sum(one.leaked for one in known), sum(one.weak for one in known), sum(one.images for one in known)

    def effect(self, levels: tuple[int, ...]) -> Effect:
        """Without looking at stronger levels."""
        leaked, weak, _ = self.count(levels)
        if leaked or weak:
            return Effect.LEAKS
        for one in self.at_all_states(levels):
            if one is None or one.state is not State.DONE or one.unknown:
                return Effect.UNKNOWN
        return Effect.STOPS

    def changes(self, accuracy: Mapping[str, float]) -> list[Change]:
        grid = self._grid
        sizes = [1 if axis.kind is Kind.STATE else len(axis.levels) for axis in grid.axes]
        found = []
        for place in product(*(range(size) for size in sizes)):
            levels = tuple(
                axis.base if axis.kind is Kind.STATE else level for axis, level in zip(grid.axes, place, strict=True)
            )
            altered = grid.changes(levels)
            if not altered:
                continue
            effect = self.effect(levels)
            if effect is Effect.STOPS and self._stronger_leaks(levels, altered):
                effect = Effect.UNPROVEN
            leaked, weak, images = self.count(levels)
            name = " and ".join(grid.axes[position].levels[levels[position]].name for position in reversed(altered))
            defence = next((a.levels[levels[i]].name for i, a in enumerate(grid.axes) if a.kind is Kind.DEFENCE), "")
            found.append(Change(levels, name, effect, leaked + weak, images, accuracy.get(defence)))
        return found

    def _stronger_leaks(self, levels: tuple[int, ...], altered: list[int]) -> bool:
        for position in altered:
            axis = self._grid.axes[position]
            for other in _stronger(axis, levels[position]):
                if self.effect((*levels[:position], other, *levels[position + 1 :])) is Effect.LEAKS:
                    return True
        return False


def _stronger(axis: Axis, level: int) -> list[int]:
    """Levels of an axis that should protect at least as well: if one of them leaks, this one did not stop the leak."""
    mine = _strength(axis, level)
    if mine is None:
        return []
    found = []
    for other in range(len(axis.levels)):
        theirs = _strength(axis, other)
        if theirs is None or theirs == mine or theirs.keys() != mine.keys():
            continue
        if all(theirs[name] >= strength for name, strength in mine.items()):
            found.append(other)
    return found


def _strength(axis: Axis, level: int) -> dict[str, float] | None:
    """What kinds of protection a level is, and how much of each; None where levels cannot be compared.

    Of combined defences the place in their order is part of the kind: one after another is not the same the other way.
    """
    words = axis.levels[level].settings
    if axis.kind is Kind.BATCH:
        return {"batch": float(words["client.batch_size"])}
    if axis.kind is not Kind.DEFENCE or len(words) > 2:
        return None
    try:
        parts = parse_defences(words["client.defence"], float(words["client.defence_strength"]))
    except DefenceError:
        return None
    found = {}
    for place, part in enumerate(parts):
        if part.name not in _MORE_IS_STRONGER + _LESS_IS_STRONGER:
            return None
        found[f"{place} {part.name}"] = part.strength if part.name in _MORE_IS_STRONGER else -part.strength
    return found


def _cost(grid: Grid, change: Change) -> tuple[object, ...]:
    altered = grid.changes(change.levels)
    kinds = sorted((_COSTS[grid.axes[position].kind] for position in altered), reverse=True)
    steps = [_step(grid.axes[position], change.levels[position]) for position in reversed(altered)]
    return len(altered), kinds, change.accuracy or 0.0, steps


def _step(axis: Axis, level: int) -> tuple[int, float]:
    """How far along its axis: a batch by its size (a smaller one is no way to stop a leak), others by their place."""
    if axis.kind is not Kind.BATCH:
        return 0, level
    size, base = (float(axis.levels[place].settings["client.batch_size"]) for place in (level, axis.base))
    return (0, size) if size > base else (1, -size)


def _describe(grid: Grid, levels: tuple[int, ...]) -> str:
    parts = [
        axis.levels[level].name
        for axis, level in zip(reversed(grid.axes), reversed(levels), strict=True)
        if axis.kind is not Kind.STATE or len(axis.levels) == 1
    ]
    return ", ".join(parts)


def _advice(grid: Grid, changes: tuple[Change, ...]) -> str:
    stopping = [change for change in changes if change.effect is Effect.STOPS]
    if not stopping:
        unknown = sum(change.effect is Effect.UNKNOWN for change in changes)
        also = f" Of {unknown} of them nothing is known, since not all of their cells have a result." if unknown else ""
        return (
            f"None of the {len(changes)} changes in this grid was shown to stop it.{also}"
            if changes
            else ("The grid holds no other settings: widen it to learn what stops the leak.")
        )
    first, *others = stopping
    cost = "" if first.accuracy is None else f", which costs {100 * first.accuracy:.1f} points of accuracy"
    sentence = f"The smallest change that stops it: {first.name}{cost}."
    first_kinds = {grid.axes[position].kind for position in grid.changes(first.levels)}
    different = [
        change
        for change in others
        if {grid.axes[position].kind for position in grid.changes(change.levels)} != first_kinds
    ]
    single = [change for change in different if len(grid.changes(change.levels)) == 1][:2]
    if single:
        sentence += f" Otherwise: {', or '.join(change.name for change in single)}."
    return sentence


def _elsewhere(changes: tuple[Change, ...]) -> str:
    leaking = [change for change in changes if change.effect is Effect.LEAKS]
    if not leaking:
        return "Nor at any other setting of this grid that has a result."
    return f"Beware of changing to: {leaking[0].name} ({leaking[0].leaked} of {leaking[0].images} images show)" + (
        f", and {len(leaking) - 1} other combinations that leak." if len(leaking) > 1 else "."
    )


def _unknown(view: _View, base: tuple[int, ...]) -> str:
    for result in view.at_all_states(base):
        if result is None:
            return "The cell of these settings was not run."
        if result.state is not State.DONE:
            return f"The cell of these settings {_END[result.state]}: {result.sentence}"
    return "Of some of its images nothing can be said."


_END = {State.FAILED: "failed", State.SKIPPED: "was not run", State.RUNNING: "has not ended", State.WAITING: "waits"}

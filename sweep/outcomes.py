"""What each combination of the client's settings does: the cells at its worst over all that is no setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from ..capture.defences import DefenceError, parse_defences
from .grid import Axis, Grid
from .kinds import Kind
from .results import CellResult, State

# Of these a larger strength is more, of the others a smaller one; of further defences nothing is known.
_MORE_IS_STRONGER = ("noise", "prune", "dp_sgd", "soteria")
_LESS_IS_STRONGER = ("clip", "quantise")
_LONGEST_LIST = 70
"""Characters; a headline says no more than it can."""


class Effect(StrEnum):
    """What a combination of settings does."""

    STOPS = "no leak shown"
    UNPROVEN = "no leak shown, but a stronger level leaks"
    LEAKS = "leaks"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Tally:
    """The worst over the cells of one combination that have a result, number by number."""

    cells: int
    """That have a result."""
    images: int
    """Of one cell."""
    leaked: int
    shown: int
    """Leaked or weakly visible."""
    labels: float | None
    """Share of the labels that were recovered; None where no cell has that number."""
    exact_places: int | None
    """Places of the network whose activations follow; None where none is known to and not all cells have that
    number."""


class Outcomes:
    """The results of a grid by the client's settings."""

    def __init__(self, grid: Grid, results: Mapping[str, CellResult]) -> None:
        self._grid = grid
        self._results = {cell.levels: results.get(cell.name) for cell in grid.cells}

    def cells(self, levels: tuple[int, ...]) -> list[tuple[str, CellResult | None]]:
        """The cells with these settings, each with the name of what else it has; on the other axes levels are free."""
        ranges = [
            (level,) if axis.kind.is_setting else range(len(axis.levels))
            for axis, level in zip(self._grid.axes, levels, strict=True)
        ]
        return [(self._circumstances(place), self._results.get(place)) for place in product(*ranges)]

    def _circumstances(self, place: tuple[int, ...]) -> str:
        pairs = zip(self._grid.axes, place, strict=True)
        return ", ".join(a.levels[i].name for a, i in pairs if not a.kind.is_setting and len(a.levels) > 1)

    def tally(self, levels: tuple[int, ...]) -> Tally:
        """The worst of the cells with these settings."""
        done = [one for _, one in self.cells(levels) if one is not None and one.state is State.DONE]
        labels = [one.labels for one in done if one.labels is not None]
        return Tally(
            cells=len(done),
            images=max((one.images for one in done), default=0),
            leaked=max((one.leaked for one in done), default=0),
            shown=max((one.leaked + one.weak for one in done), default=0),
            labels=max(labels, default=None),
            exact_places=self._exact_places(levels),
        )

    def _exact_places(self, levels: tuple[int, ...]) -> int | None:
        found = [None if one is None else one.exact_places for _, one in self.cells(levels)]
        most = max(places or 0 for places in found)
        return most if most or None not in found else None

    def spread(self, levels: tuple[int, ...]) -> str:
        """Of several cells with these settings, what each shows, as the end of a sentence; empty for a single one."""
        cells, tally = self.cells(levels), self.tally(levels)
        if len(cells) == 1:
            return ""
        parts = []
        for name, one in cells:
            known = one is not None and one.state is State.DONE
            shown = 0 if one is None else one.leaked if tally.leaked else one.leaked + one.weak
            parts.append(f"{name}: {shown} of {one.images}" if one is not None and known else f"{name}: –")
        listed = "; ".join(parts)
        if len(listed) > _LONGEST_LIST:
            return f" in the worst of the {tally.cells} cells that have a result at these settings"
        return f" in the worst case ({listed})"

    def effect(self, levels: tuple[int, ...]) -> Effect:
        """The worst over all that is no setting, without a look at stronger levels."""
        if self.tally(levels).shown:
            return Effect.LEAKS
        for _, one in self.cells(levels):
            if one is None or one.state is not State.DONE or one.unknown:
                return Effect.UNKNOWN
        return Effect.STOPS

    def exactness(self, levels: tuple[int, ...]) -> Effect:
        """The same of what the update determines exactly: a leak is any place of the network that follows."""
        places = self._exact_places(levels)
        if places is None:
            return Effect.UNKNOWN
        return Effect.LEAKS if places else Effect.STOPS

    def effect_of_change(self, levels: tuple[int, ...]) -> Effect:
        """The effect; where a stronger level of what is altered leaks, it is not taken for a stop."""
        return self._of_change(levels, self.effect)

    def exactness_of_change(self, levels: tuple[int, ...]) -> Effect:
        """See `exactness`, by the same rule."""
        return self._of_change(levels, self.exactness)

    def _of_change(self, levels: tuple[int, ...], judge: Callable[[tuple[int, ...]], Effect]) -> Effect:
        effect = judge(levels)
        if effect is not Effect.STOPS:
            return effect
        for position in self._grid.changes(levels):
            for other in _stronger(self._grid.axes[position], levels[position]):
                if judge((*levels[:position], other, *levels[position + 1 :])) is Effect.LEAKS:
                    return Effect.UNPROVEN
        return effect


def _stronger(axis: Axis, level: int) -> list[int]:
    """Levels of an axis that should protect at least as well: if one of them leaks, this one did not stop the leak."""
    mine = _strength(axis, level)
    if mine is None:
        return []
    found = []
    for other in range(len(axis.levels)):
        theirs = _strength(axis, other)
        # No defence protects no better than any.
        if theirs is None or theirs == mine or (mine and theirs.keys() != mine.keys()):
            continue
        if all(theirs[name] >= strength for name, strength in mine.items()):
            found.append(other)
    return found


def _strength(axis: Axis, level: int) -> dict[tuple[int, str], float] | None:
    """What kinds of protection a level is, and how much of each; None where levels cannot be compared.

    Of combined defences the place of each is part of the kind: one after another is not the same the other way.
    """
    words = axis.levels[level].settings
    if axis.kind is Kind.BATCH:
        return {(0, "batch"): float(words["client.batch_size"])}
    if axis.kind is not Kind.DEFENCE or len(words) > 2:
        return None
    try:
        parts = parse_defences(words["client.defence"], float(words["client.defence_strength"]))
    except DefenceError:
        return None
    found = {}
    for place, part in enumerate(parts):
        if part.name == "none":
            continue
        if part.name not in _MORE_IS_STRONGER + _LESS_IS_STRONGER:
            return None
        found[place, part.name] = part.strength if part.name in _MORE_IS_STRONGER else -part.strength
    return found

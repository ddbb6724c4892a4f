"""Which change stops the leak, and which of them is the smallest: read off the cells, by rules that the page states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from .advice import advise, advise_on_exactness, describe, elsewhere, labels_in_words, unknown
from .changes import Change
from .grid import Axis, Grid
from .kinds import Kind, worst_case_in_words
from .outcomes import Effect, Outcomes
from .price import Price
from .results import CellResult

ORDER = (
    "The smallest change alters the fewest settings; then a larger batch comes before another batch-norm mode, that "
    "before another key, and a defence comes last; then what costs less accuracy, where that was measured; then what "
    "stands first in its list. Changes with whose defence no training stayed finite, or the trained model was no "
    "better than always naming the most frequent class, come after all others. A change stops the leak where every "
    "cell with it, at every model state and at every level of whatever is no setting of the client, was run to its end "
    "and shows no image leaked or weakly visible, and no stronger level of the same setting leaks."
)
_COSTS = {kind: position for position, kind in enumerate(Kind)}


@dataclass(frozen=True)
class GridVerdict:
    """What the whole audit says."""

    leaks: bool | None
    """Whether the user's own settings leak; None where that is not known."""
    headline: str
    advice: str
    caution: str
    changes: tuple[Change, ...]
    """All other combinations of settings, the smallest change first."""
    worst_case: str = ""
    """Which axes are no settings of the client and were judged by their worst level; empty where there are none."""
    exactness: str = ""
    """What the update determines exactly at the user's settings, and the smallest change that ends it; empty where
    nothing is known of it."""


def judge_grid(grid: Grid, results: Mapping[str, CellResult], prices: Mapping[str, Price] | None = None) -> GridVerdict:
    """The verdict on a grid.

    Args:
        grid: The cells that were to be run.
        results: By name of the cell; one that is missing was not run.
        prices: What each defence, by the name of its level, costs, as far as it was measured.
    """
    outcomes, base = Outcomes(grid, results), grid.base
    changes = tuple(sorted(_changes(grid, outcomes, prices or {}), key=lambda change: _order(grid, change)))
    tally, effect = outcomes.tally(base), outcomes.effect(base)
    where = f"At your settings ({describe(grid)})"
    worst_case = worst_case_in_words((axis.kind, axis.title) for axis in grid.axes if len(axis.levels) > 1)
    if effect is Effect.UNKNOWN:
        known = "nothing is known" if not tally.cells else "not all is known"
        leaks, headline, advice = None, f"{where} {known}", unknown(outcomes.cells(base))
    elif effect is Effect.LEAKS:
        shown = f"{tally.leaked} of {tally.images} images leak"
        if not tally.leaked:
            shown = f"{tally.shown} of {tally.images} images are weakly visible"
        leaks, headline, advice = True, f"{where} {shown}{outcomes.spread(base)}", advise(grid, changes)
    else:
        labels = "" if not tally.labels else f", but {labels_in_words(tally.labels)}"
        leaks, headline, advice = False, f"{where} no image leak was shown{labels}", elsewhere(changes)
    several = len(outcomes.cells(base)) > 1
    exact = advise_on_exactness(outcomes.exactness(base), tally.exact_places, changes, several)
    return GridVerdict(leaks, headline, advice, _CAUTION, changes, worst_case, exact)


_CAUTION = (
    "This is what the attack showed at this effort, on these images. A setting at which nothing leaked here is not "
    "proven safe: a stronger attack, other images or other weights may show more."
)


def _changes(grid: Grid, outcomes: Outcomes, prices: Mapping[str, Price]) -> list[Change]:
    """Every combination of settings but the base."""
    ranges = [range(len(axis.levels)) if axis.kind.is_setting else (axis.base,) for axis in grid.axes]
    defence = next(position for position, axis in enumerate(grid.axes) if axis.kind is Kind.DEFENCE)
    found = []
    for levels in product(*ranges):
        altered = grid.changes(levels)
        if not altered:
            continue
        tally = outcomes.tally(levels)
        found.append(
            Change(
                levels=levels,
                name=" and ".join(grid.axes[position].levels[levels[position]].name for position in reversed(altered)),
                effect=outcomes.effect_of_change(levels),
                leaked=tally.shown,
                images=tally.images,
                labels=tally.labels,
                defence=grid.axes[defence].levels[levels[defence]].name,
                alters_defence=defence in altered,
                exactness=outcomes.exactness_of_change(levels),
                exact_places=tally.exact_places,
                price=prices.get(grid.axes[defence].levels[levels[defence]].name),
            )
        )
    return found


def _order(grid: Grid, change: Change) -> tuple[object, ...]:
    altered = grid.changes(change.levels)
    kinds = sorted((_COSTS[grid.axes[position].kind] for position in altered), reverse=True)
    steps = [_step(grid.axes[position], change.levels[position]) for position in reversed(altered)]
    unmeasured = change.alters_defence and change.cost is None
    return not change.usable, len(altered), kinds, unmeasured, change.cost or 0.0, steps


def _step(axis: Axis, level: int) -> tuple[int, float]:
    """How far along its axis: a batch by its size (a smaller one is no way to stop a leak), others by their place."""
    if axis.kind is not Kind.BATCH:
        return 0, level
    size, base = (float(axis.levels[place].settings["client.batch_size"]) for place in (level, axis.base))
    return (0, size) if size > base else (1, -size)

"""The verdict of an audit in words: what to change, at which price, and what is not known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .changes import Change
from .grid import UNDEFENDED, Grid
from .outcomes import Effect
from .price import Training
from .results import CellResult, State

_SMALLEST_COST = 0.0005
"""Below a twentieth of a point nothing is lost that can be told."""
_FURTHER = 2
_WHY = "a cell has no result, or of some of its images nothing can be told, and the page of the cell says why"


def describe(grid: Grid) -> str:
    """The user's own settings; what is judged by its worst level is left out where it has several."""
    parts = [
        axis.levels[level].name
        for axis, level in zip(reversed(grid.axes), reversed(grid.base), strict=True)
        if axis.kind.is_setting or len(axis.levels) == 1
    ]
    config = next((cell.config for cell in grid.cells if cell.levels == grid.base), None)
    varied = any("client.clients" in level.settings for axis in grid.axes for level in axis.levels)
    if config is not None and config.client.clients > 1 and not varied:
        parts.append(f"{config.client.clients} clients with a batch each")
    return ", ".join(parts)


def labels_in_words(share: float | None) -> str:
    """How many labels come out of the update, with no regard to the images."""
    if share is None:
        return "how many of the labels are recovered is not known"
    return f"{share:.0%} of the labels are recovered" if share else "none of the labels is recovered"


def advise(grid: Grid, changes: Sequence[Change]) -> str:
    """What would stop the leak, the smallest change first, each with its price and with the labels that still leak."""
    stopping = [change for change in changes if change.effect is Effect.STOPS]
    if not changes:
        return "The grid holds no other settings of the client: widen it to learn what stops the leak."
    if not stopping:
        unknown = sum(change.effect is Effect.UNKNOWN for change in changes)
        also = f" Of {unknown} of them it is not known: {_WHY}." if unknown else ""
        if len(changes) == 1:
            missing = f"; it is not known: {_WHY}" if unknown else ""
            return f"The one change in this grid was not shown to stop it{missing}."
        return f"None of the {len(changes)} changes in this grid was shown to stop it.{also}"
    first = stopping[0]
    before = _not_known(change.effect for change in changes[: changes.index(first)])
    if not first.usable:
        return (
            "The image leak was stopped only by changes with which no useful model could be trained: the smallest is "
            f"{first.name} ({_terms(first)}){before}."
        )
    stops = "was shown to stop" if before else "stops"
    sentence = f"The smallest change that {stops} the image leak: {first.name} ({_terms(first)}){before}."
    kinds = _kinds(grid, first)
    further = [
        change
        for change in stopping[1:]
        if change.usable and len(grid.changes(change.levels)) == 1 and _kinds(grid, change) != kinds
    ][:_FURTHER]
    if further:
        sentence += f" Otherwise: {', or '.join(f'{change.name} ({_terms(change)})' for change in further)}."
    return sentence


def advise_on_exactness(effect: Effect, places: int | None, changes: Sequence[Change], several: bool) -> str:
    """What equations alone give at the user's settings, and the smallest change with which they give nothing.

    Args:
        effect: Of the user's own settings.
        places: Of the network, that follow at them.
        changes: The smallest first.
        several: Whether they have several cells, of which the worst counts.

    Returns:
        Empty where nothing is known of it.
    """
    if effect is Effect.UNKNOWN:
        return ""
    if effect is not Effect.LEAKS:
        return "No activations follow from the update exactly at your settings, as far as peeling went."
    what = "the activations at one place" if places == 1 else f"the activations at {places} places"
    sentence = f"From the update alone, up to stated errors, follow {what} of the network at your settings"
    sentence += " in the worst case" if several else ""
    stopping = [change for change in changes if change.exactness is Effect.STOPS]
    usable = [change for change in stopping if change.usable] or stopping
    if usable:
        first = usable[0]
        before = _not_known(change.exactness for change in changes[: changes.index(first)])
        which = "that was shown to end that" if before else "with which none do"
        smallest = f"the smallest change {which}, as far as peeling went: {first.name} ({_price(first)})"
        return f"{sentence}; {smallest}{before}."
    unknown = sum(change.exactness is Effect.UNKNOWN for change in changes)
    also = f" (of {unknown} it is not known)" if unknown else ""
    return f"{sentence}, and no change in this grid was shown to end that{also}."


def _not_known(smaller: Iterable[Effect]) -> str:
    """How many changes that come before one may do it too, as the end of a sentence; empty where none may."""
    number = sum(effect is Effect.UNKNOWN for effect in smaller)
    if not number:
        return ""
    return f"; of {number} smaller ones it is not known" if number > 1 else "; of one smaller change it is not known"


def elsewhere(changes: Sequence[Change]) -> str:
    """Where nothing leaks at the user's settings: which changes to beware of."""
    if not changes:
        return "The grid holds no other settings of the client."
    leaking = [change for change in changes if change.effect is Effect.LEAKS]
    if not leaking:
        unknown = sum(change.effect is Effect.UNKNOWN for change in changes)
        known = f"Neither was one at any of the {len(changes) - unknown} other combinations of settings with a result."
        if unknown == len(changes):
            return "Of the other combinations of settings nothing is known."
        return known + (f" Of {unknown} more nothing is known." if unknown else "")
    return f"Beware of changing to: {leaking[0].name} ({leaking[0].leaked} of {leaking[0].images} images show)" + (
        f", and {len(leaking) - 1} other combinations that leak." if len(leaking) > 1 else "."
    )


def unknown(cells: Sequence[tuple[str, CellResult | None]]) -> str:
    """Why nothing can be said of the user's own settings."""
    for name, result in cells:
        which = f"The cell of these settings{f' ({name})' if name else ''}"
        if result is None:
            return f"{which} was not run."
        if result.state is not State.DONE:
            return f"{which} {_END[result.state]}: {result.sentence}"
    number, images = max((result.unknown, result.images) for _, result in cells if result is not None)
    return f"Of {number} of its {images} images nothing can be told, and the page of the cell says why" + (
        "; the others show no leak." if number < images else "."
    )


_END = {State.FAILED: "failed", State.SKIPPED: "was not run", State.RUNNING: "has not ended", State.WAITING: "waits"}


def _kinds(grid: Grid, change: Change) -> set[str]:
    return {grid.axes[position].kind for position in grid.changes(change.levels)}


def _terms(change: Change) -> str:
    """The price, and the labels that come out all the same."""
    labels = labels_in_words(change.labels).replace(" are recovered", " are still recovered")
    return f"{_price(change)}; {labels}"


def _price(change: Change) -> str:
    price, cost = change.price, change.cost
    if price is not None and price.training is Training.NOT_FINITE:
        return f"no training stayed finite with {change.defence}"
    if price is not None and price.training is Training.NOTHING:
        return f"a model trained with {change.defence} was no better than always naming the most frequent class"
    if change.alters_defence and change.defence == UNDEFENDED:
        return "without a defence none costs accuracy"
    if cost is None or not change.alters_defence:
        return "what it costs in accuracy was not measured"
    which = change.defence if change.name != change.defence else "it"
    if cost < _SMALLEST_COST:
        return f"{which} cost no accuracy in a short training"
    return f"{which} costs {100 * cost:.1f} points of accuracy"

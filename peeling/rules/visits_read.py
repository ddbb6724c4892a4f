"""How many visits a weight delta is of, and how many of them its first steps had, where nobody needs to say so.

The taps of a convolution have a place for each place of each visit, so that their rank counts the visits. Of the visits
told apart those of the first step obey the weights that the server sent, which they show without any number of the
client's settings: of all others more is left (see `visits`). In front of batch norm on batch statistics the derivatives
of each batch add up to zero, so that their rank is smaller by the number of batches, which is that of the steps.

Only updates without weight decay: its share of the delta, as large as the number of steps has it, has no low rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ..local_steps import LocalSteps
from ..refusals import Why
from ..visits import APART, OBEYS, VisitList
from ..visits_seen import Seen, visits_seen
from .batch_statistics import behind_batch_statistics
from .rule import Setting
from .tap_foothold import crowding, places_of, taps_operations
from .visit_foothold import VisitPair, ordering_of, visit_pair, visits_of

# Visits that leave more than this do not obey, however badly they are known; what leaves less than the other is known
# well and obeys, however much less others leave.
_SURELY_APART, _SURELY_OBEYS = 0.1, 1e-3


@dataclass(frozen=True)
class VisitsRead:
    """What the delta shows."""

    visits: int
    """Of images, over all steps and clients; at least so many (see `visits_seen`)."""
    first: int | None
    """Those of every client's first step; None where they do not stand out from the others, as where there is one step
    alone or where the steps are very small. On batch statistics the mean size of a step, where that is whole."""
    averaged: bool = False
    """Whether it is that mean."""


def visits_read(setting: Setting, expected: int | None = None, told: int | None = None) -> VisitsRead | None:
    """By the pair of convolutions with the fewest places; None where no rank shows a number of visits, or where that
    would cost more than the setting affords.

    Args:
        setting: With the weight delta over minus any learning rate, and of any number of images.
        expected: Where there are as many visits, it is not looked at which of them are the first step's.
        told: Of the first step, if somebody vouches for that; see `standing_out`.
    """
    found = _fewest_places(setting)
    if found is None:
        return None
    pair, seen = found
    if seen.batches:
        size, rest = divmod(seen.visits, seen.batches)
        return VisitsRead(seen.visits, None if rest else size, averaged=True)
    first = None if seen.visits == expected else _first(replace(setting, image_count=seen.visits), pair, told)
    return VisitsRead(seen.visits, first)


def _fewest_places(setting: Setting) -> tuple[VisitPair, Seen] | None:
    """Of the pairs whose rank shows a number of visits the one with the fewest places."""
    pairs = [pair for node in setting.graph.nodes if (pair := visit_pair(setting, node)) is not None]
    for pair in sorted(pairs, key=lambda one: places_of(setting, one.second)):
        gradient = setting.gradient(pair.second.name, "weight")
        assert gradient is not None
        outputs, inputs = gradient.shape[:2]
        if not setting.effort.affords(2.0 * gradient.numel() * (outputs + inputs) + 10.0 * (outputs**3 + inputs**3)):
            return None
        balanced = behind_batch_statistics(setting.graph, pair.second) is not None
        seen = visits_seen(gradient, (pair.second.shape[1], pair.second.shape[2]), balanced)
        if seen is not None:
            return pair, seen
    return None


def _first(setting: Setting, pair: VisitPair, told: int | None) -> int | None:
    nodes = (pair.first, pair.second)
    if max(crowding(setting, node) for node in nodes) > 1:
        return None
    if not setting.effort.affords(sum(taps_operations(setting, node) for node in nodes)):
        return None
    lists = []
    for node in nodes:
        found = visits_of(setting, node)
        if isinstance(found, Why):
            return None
        lists.append(found)
    front, back = lists
    return standing_out(_left(setting, pair, front, back), told)


def _left(setting: Setting, pair: VisitPair, front: VisitList, back: VisitList) -> list[float]:
    # Under the weights that were sent neither the steps nor their rate have a part in it.
    ordering = ordering_of(setting, LocalSteps((setting.image_count,), 1.0), pair)
    return ordering.left_at_first(front, back)


def standing_out(left: Sequence[float], told: int | None = None) -> int | None:
    """How many of these obey while all others do not; None where no number does.

    Args:
        left: What each visit leaves of its features, the least first.
        told: Number that somebody vouches for: it stands where these may be of so many too.
    """
    gaps = {
        count: after / max(before, 1e-300)
        for count, (before, after) in enumerate(pairwise(left), start=1)
        if before <= OBEYS < after and before <= APART * after
    }
    found = max(gaps, key=lambda count: gaps[count], default=None)
    return told if found is not None and told is not None and _may_be(left, told, found) else found


def _may_be(left: Sequence[float], told: int, found: int) -> bool:
    """Whether a number that was told agrees with visits of which another stands out."""
    # One visit of the first step that is badly known leaves more than it should, and makes the step one smaller.
    if told == found + 1 and left[found] <= _SURELY_APART:
        return True
    # Small steps: visits of the second one obey too, only less well.
    return told < len(left) and left[told - 1] <= APART * left[told] and left[told] > _SURELY_OBEYS

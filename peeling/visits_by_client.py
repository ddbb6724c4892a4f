"""The visits of several clients' first steps divided among the clients, by what their weights leave of second steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

MOST_GROUPS = 70
"""Groups of visits that are tried; each takes a look at all visits that are left."""


def divided(count: int, size: int, leaves: Callable[[tuple[int, ...]], float]) -> tuple[list[tuple[int, ...]], float]:
    """Groups of one size that have every visit once, the worst of which leaves least.

    Args:
        count: Visits in all.
        size: Of each group.
        leaves: What a group leaves of what follows it.

    Returns:
        The groups, and the least that any other group leaves, infinite where there is none. Where there are more than
        `MOST_GROUPS`, none is looked at, and the second number is 0: nothing stands out.
    """
    if math.comb(count, size) > MOST_GROUPS:
        return [tuple(range(start, start + size)) for start in range(0, count, size)], 0.0
    left = {group: leaves(group) for group in combinations(range(count), size)}
    groups, _ = _best(frozenset(range(count)), left)
    return groups, min((one for group, one in left.items() if group not in groups), default=math.inf)


def _best(rest: frozenset[int], left: dict[tuple[int, ...], float]) -> tuple[list[tuple[int, ...]], float]:
    """The best division of what is left, and what its worst group leaves."""
    if not rest:
        return [], 0.0
    found: tuple[list[tuple[int, ...]], float] = [], math.inf
    for group in sorted((one for one in left if min(rest) in one and rest.issuperset(one)), key=left.__getitem__):
        if left[group] >= found[1]:
            break
        others, worst = _best(rest.difference(group), left)
        if max(worst, left[group]) < found[1]:
            found = [group, *others], max(worst, left[group])
    return found

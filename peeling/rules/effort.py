"""What the rules may still cost, and what they tried in vain with the same knowledge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ..refusals import Refused

_Found = TypeVar("_Found")


@dataclass
class Effort:
    """Of one derivation; it changes as rules work.

    Operations are counted before they are made, so that what is left out does not depend on the machine.
    """

    left: float = math.inf
    """Floating-point operations that may still be made."""
    _tried: dict[tuple[str, str], tuple[tuple[object, ...], Refused]] = field(default_factory=dict)

    def affords(self, operations: float) -> bool:
        """Whether so many are left; if so they count as made."""
        if operations > self.left:
            return False
        self.left -= operations
        return True

    def give_back(self, operations: float) -> None:
        """So many that counted as made and were not needed are left again.

        Args:
            operations: No more than were afforded.
        """
        self.left += operations

    def once(
        self, rule: str, value: str, given: Sequence[object], attempt: Callable[[], _Found | Refused]
    ) -> _Found | Refused:
        """An attempt, or the refusal that it ended in before, with the very same things given.

        Args:
            rule: That attempts it.
            value: That it is about.
            given: All knowledge that it depends on; things of it never change.
            attempt: Makes it.
        """
        before = self._tried.get((rule, value))
        if before is not None and len(before[0]) == len(given) and all(map(_same, before[0], given)):
            return before[1]
        found = attempt()
        if isinstance(found, Refused):
            self._tried[rule, value] = tuple(given), found
        return found


def _same(one: object, other: object) -> bool:
    return one is other

"""What a seed is told to do, written so that it may be told twice, and to a process that knows nothing yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..storage.tensor_file import StateFile

# Rounds that are kept for a seed whose state cannot be saved; beyond, the oldest consensus is forgotten.
MOST_LEGS = 32


@dataclass(frozen=True)
class Leg:
    """One round's descent of one seed."""

    round: int
    until_step: int
    """Absolute step."""
    consensus: Any = None
    """What `AgentGroup.put` gave for the consensus, or None before there is one."""
    permutation: tuple[int, ...] = ()
    """Which image of the consensus belongs at each place of this seed's batch."""


@dataclass(frozen=True)
class Origin:
    """Where a process begins that does not hold the seed's state."""

    stint: tuple[int, int]
    """Changes whenever what the seed did before no longer counts; a process with another one begins here."""
    step: int = 0
    state: StateFile | None = None
    """Of the last checkpoint; None begins at ``step``."""
    start: Any = None
    """What `AgentGroup.put` gave for the images that a seed begins near, or None for ``x ~ N(0, 1)``."""


@dataclass(frozen=True)
class Order:
    """A seed's task for one round. Carrying it out twice is carrying it out once."""

    epoch: int
    """Of the coordinator that gives it: an agent takes no order of an older one."""
    origin: Origin
    legs: tuple[Leg, ...]
    """All rounds since the origin; the last one is the current one. A process skips those that lie behind it."""
    save: int | None = None
    """Write the state after the last leg, for the checkpoint of this round, while the next round runs."""

    @property
    def current(self) -> Leg:
        """The round that this order is about."""
        return self.legs[-1]


class Itinerary:
    """Keeps, for each seed that takes part, where it began and the rounds it made since.

    Args:
        epoch: Of this coordinator.
    """

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._origins: dict[int, Origin] = {}
        self._legs: dict[int, tuple[Leg, ...]] = {}
        self._saves: dict[int, set[int]] = {}
        """By position, the rounds that a seed was asked to save since it entered."""
        self._stints = 0

    @property
    def members(self) -> tuple[int, ...]:
        """Positions of the seeds that take part."""
        return tuple(sorted(self._origins))

    def enter(self, position: int, step: int, start: Any = None, state: StateFile | None = None) -> None:
        """A seed takes part from here on: from a saved state, near shared images, or from noise."""
        self._stints += 1
        self._saves[position] = set()
        self._origins[position] = Origin((self._epoch, self._stints), step, state, start)
        self._legs[position] = ()

    def leave(self, position: int) -> None:
        """A seed takes no part any more; what it did counts no longer when it comes back."""
        self._origins.pop(position, None)
        self._legs.pop(position, None)
        self._saves.pop(position, None)

    def order(self, position: int, leg: Leg, save: int | None = None) -> Order:
        """The order for a seed's next round."""
        legs = [known for known in self._legs[position] if known.until_step < leg.until_step]
        self._legs[position] = (*legs[-MOST_LEGS + 1 :], leg)
        return self.again(position, save)

    def again(self, position: int, save: int | None = None) -> Order:
        """The order for a seed's last round once more."""
        if save is not None:
            self._saves[position].add(save)
        return Order(self._epoch, self._origins[position], self._legs[position], save)

    def moved(self, position: int, round: int, state: StateFile) -> bool:
        """A seed's state of a round was saved while it was on its way: a new process begins there instead.

        Returns:
            False where the seed has left since; its orders are what they were.
        """
        # A seed that came back meanwhile goes its own way: what was saved before it left is not where it stands.
        saves = self._saves.get(position, set())
        if round not in saves:
            return False
        self._saves[position] = {later for later in saves if later > round}
        self._origins[position] = replace(self._origins[position], step=state.step, state=state, start=None)
        # The last leg stays, also where it lies behind: an order is about it.
        *before, last = self._legs[position]
        self._legs[position] = (*(leg for leg in before if leg.until_step > state.step), last)
        return True

"""Which agents have a process, and where: actors by name, which Ray makes again wherever there is room."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError

from .agent_actor import Presence
from .draining import draining_nodes

# A process that is being made again refuses calls; it is not asked more often than this.
_PING_SECONDS = 0.1
_DRAIN_LOOK_SECONDS = 1.0
# An actor that was ended keeps its name for a moment.
_MOST_LOOKS = 300


class Roster:
    """The agents' actors, by position.

    Args:
        count: How many there are.
        make: Makes, or finds by its name, the actor of a position.
    """

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self._make = make
        self.actors = {position: make(position) for position in range(count)}
        self.here: dict[int, Presence] = {}
        """The agents that have a process, as far as is known."""
        self._pings: dict[Any, int] = {}
        self._pinged: dict[int, float] = {}
        self._leaving: set[str] = set()
        self._ended: dict[int, str] = {}
        """The last process of a position that was ended here: it may still answer before it is gone."""
        self._looked = 0.0
        for position in self.actors:
            self.ping(position)

    @property
    def awaited(self) -> list[Any]:
        """References that become ready with a sign of life, or the lack of one."""
        return list(self._pings)

    def ping(self, position: int) -> None:
        """Ask for a sign of life, unless one is awaited or was refused just now."""
        now = time.monotonic()
        if position in self._pings.values() or now - self._pinged.get(position, 0.0) < _PING_SECONDS:
            return
        self._pinged[position] = now
        self._pings[self.actors[position].ready.remote()] = position

    def ping_absent(self) -> None:
        """Ask all that have no process."""
        for position in self.actors.keys() - self.here.keys():
            self.ping(position)

    def take(self, reference: Any) -> int | None:
        """The position whose sign of life this is; None where it was the lack of one."""
        position = self._pings.pop(reference)
        try:
            presence: Presence = ray.get(reference)
        except RayActorError as error:
            if isinstance(error, ActorDiedError):
                # Ray will not make it again (it was ended on purpose, or this was its node's end): we do, or find it.
                self.actors[position] = self._make(position)
            return None
        if presence.token == self._ended.get(position):
            return None
        self.here[position] = presence
        return position

    def lost(self, position: int) -> None:
        """A call found no process."""
        self.here.pop(position, None)
        self.ping(position)

    def restart(self, position: int) -> None:
        """End the process, so that Ray makes it again, possibly elsewhere."""
        if position in self.here:
            self._ended[position] = self.here[position].token
        ray.kill(self.actors[position], no_restart=False)
        self.lost(position)

    def ask_to_leave(self) -> list[int]:
        """Positions of agents whose node will be taken away and that were not told before; now they are."""
        now = time.monotonic()
        if now - self._looked < _DRAIN_LOOK_SECONDS:
            return []
        self._looked = now
        try:
            nodes = draining_nodes()
        except RayError:
            return []  # the head is away; it is asked again
        told = []
        for position, presence in self.here.items():
            if presence.node in nodes and presence.token not in self._leaving:
                self._leaving.add(presence.token)
                self.actors[position].leave.remote()
                told.append(position)
        return told

    def close(self) -> None:
        """End all agents for good."""
        for actor in self.actors.values():
            ray.kill(actor)


def end_actors(names: Sequence[str], namespace: str) -> None:
    """End the actors of these names, as far as there are any, and wait until their names are free."""
    left = list(names)
    for _ in range(_MOST_LOOKS):
        left = [name for name in left if _end_actor(name, namespace)]
        if not left:
            return
        time.sleep(_PING_SECONDS)


def _end_actor(name: str, namespace: str) -> bool:
    """Whether there was one to end."""
    try:
        ray.kill(ray.get_actor(name, namespace))
    except ValueError:
        return False
    return True

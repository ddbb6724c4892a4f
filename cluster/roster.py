"""The agents' processes: actors by name, which Ray makes again wherever there is room."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError

from .member import PING_SECONDS, Member, Presence, State
from .ray_internals import draining_nodes

_DRAIN_LOOK_SECONDS = 1.0
# An actor that was ended keeps its name for a moment.
_MOST_LOOKS = 300


class Roster:
    """Asks the members' actors for signs of life, and ends them.

    Args:
        members: All of them.
        make: Makes, or finds by its name, the actor of a member.
    """

    def __init__(self, members: Sequence[Member], make: Callable[[Member], Any]) -> None:
        self._members, self._make = members, make
        self._asked: dict[Any, Member] = {}
        self._looked = 0.0
        for member in members:
            member.actor = make(member)
            self.ping(member)

    @property
    def awaited(self) -> list[Any]:
        """References that become ready with a sign of life, or the lack of one."""
        return list(self._asked)

    def ping(self, member: Member) -> None:
        """Ask for a sign of life, unless one is awaited or was refused just now."""
        now = time.monotonic()
        if member.may_be_asked(now):
            member.ask(now)
            self._asked[member.actor.ready.remote()] = member

    def ping_absent(self) -> None:
        """Ask all that have no process."""
        for member in self._members:
            if member.presence is None and member.state is not State.RETIRED:
                self.ping(member)

    def take(self, reference: Any) -> tuple[Member, Presence | None]:
        """Whose sign of life this is, and the sign; None where it was the lack of one."""
        member = self._asked.pop(reference)
        member.is_asked = False
        try:
            presence: Presence = ray.get(reference)
        except RayActorError as error:
            if isinstance(error, ActorDiedError):
                # Ray will not make it again (it was ended on purpose, or this was its node's end): we do, or find it.
                member.actor = self._make(member)
            return member, None
        return member, presence

    def restart(self, member: Member) -> None:
        """End the process, so that Ray makes it again, possibly elsewhere."""
        ray.kill(member.actor, no_restart=False)
        self.ping(member)

    def ask_to_leave(self) -> list[Member]:
        """Members whose node will be taken away and that were not told before; now they are."""
        now = time.monotonic()
        if now - self._looked < _DRAIN_LOOK_SECONDS:
            return []
        self._looked = now
        try:
            nodes = draining_nodes()
        except RayError:
            return []  # the head is away; it is asked again
        told = [member for member in self._members if member.must_leave(nodes)]
        for member in told:
            member.actor.leave.remote()
        return told


def end_actors(names: Sequence[str], namespace: str) -> None:
    """End the actors of these names, as far as there are any, and wait until their names are free."""
    left = list(names)
    for _ in range(_MOST_LOOKS):
        left = [name for name in left if _end_actor(name, namespace)]
        if not left:
            return
        time.sleep(PING_SECONDS)


def _end_actor(name: str, namespace: str) -> bool:
    """Whether there was one to end."""
    try:
        ray.kill(ray.get_actor(name, namespace))
    except ValueError:
        return False
    return True

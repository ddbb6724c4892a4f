"""One agent as the coordinator's group sees it: where it stands, what it was told, what it answered. Knows no Ray.

Every change of an agent's state is a method here. Times are given by the caller, from a clock that only goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from ..agents import Account
from ..coordinator import Order
from .agent_loop import Reply

# A process that is being made again refuses calls; it is not asked more often than this.
PING_SECONDS = 0.1


class State(Enum):
    """Where an agent stands; the value says it to a person."""

    PENDING = "no process is known, and no round waits for one"
    READY = "a process stands ready; what it was ordered is carried out"
    RUNNING = "a process carries out an order"
    LOST = "the process was lost with an order, and the round waits for the next one"
    RETIRED = "something ends every process; the agent is left out for good"


_NEXT = {
    State.PENDING: {State.READY, State.LOST},
    State.READY: {State.RUNNING},
    State.RUNNING: {State.READY, State.LOST},
    State.LOST: {State.READY, State.PENDING, State.RETIRED},
    State.RETIRED: set[State](),
}


@dataclass(frozen=True)
class Presence:
    """Which process answers, and where it is."""

    token: str
    node: str


@dataclass(eq=False)
class Member:
    """An agent of the group.

    The process behind ``actor`` may be another one from call to call; its ``presence`` tells which.
    """

    position: int
    seed: int
    actor: Any = None
    """Its handle."""
    state: State = State.PENDING
    presence: Presence | None = None
    """The process that it has, as far as is known."""
    order: Order | None = None
    """The newest one. ``save`` is cleared once the state was asked for."""
    sent: Order | None = None
    """The one that is being carried out, which may be older."""
    account: Account | None = None
    """Of the newest candidate, and of all that happened since the coordinator was told."""
    images: Sequence[Any] = ()
    """A reference to that candidate's images of each part of the batch."""
    begun: Reply | None = None
    """The part of a round that a process made before it left."""
    failures: int = 0
    """Within the round."""
    lost_at: float = 0.0
    is_asked: bool = False
    """A sign of life is awaited."""
    asked_at: float = field(default=float("-inf"))
    ended: str | None = None
    """Token of the last process that was ended on purpose: it may still answer before it is gone."""
    leaving: str | None = None
    """Token of the last process that was asked to leave its node."""

    def _become(self, state: State) -> None:
        assert state in _NEXT[self.state], f"{self.state} does not become {state}"
        self.state = state

    # Orders and replies.

    def give(self, order: Order, now: float) -> int | None:
        """Take the newest order; it is due at once if the agent is ready, else as soon as it is.

        Args:
            order: The order.
            now: Seconds.

        Returns:
            The round whose state nobody saves any more, since the agent was to save another one meanwhile.
        """
        known, self.order = self.order, order
        if self.state is State.PENDING:
            self._become(State.LOST)
            self.lost_at = now
        elif known is not None and known is not self.sent and self.state in (State.LOST, State.RUNNING):
            # The order before this one never reached the process. The one under way answers for its own write.
            return self._carry_over(known.save)
        return None

    def _carry_over(self, save: int | None) -> int | None:
        """Keep a write that is owed in the newest order; an order has room for one."""
        assert self.order is not None
        if save is None or save == self.order.save:
            return None
        if self.order.save is not None:
            return save
        self.order = replace(self.order, save=save)
        return None

    def renew(self, order: Order) -> None:
        """Take an order for a process that is lost on its way: the same round of the same stint, from further on."""
        known = self.order
        if known is None or known.origin.stint != order.origin.stint or known.current.round != order.current.round:
            return
        # An agent that left in the middle of a round is further than any checkpoint.
        if known.origin.step < order.origin.step:
            self.order = replace(order, save=known.save)

    def send(self) -> Order:
        """The newest order goes to the process, and is returned."""
        assert self.order is not None
        self._become(State.RUNNING)
        self.sent = self.order
        return self.order

    def answer(self, reply: Reply, images: Sequence[Any]) -> int | None:
        """The order that was sent is carried out.

        Args:
            reply: Whole, see `whole`.
            images: A reference for each part of the batch.

        Returns:
            The round whose state the process writes now.
        """
        sent, self.sent = self.sent, None
        assert sent is not None
        assert self.order is not None
        self._become(State.READY)
        self.account = reply.account if self.account is None else reply.account.after(self.account)
        self.images = images
        if self.order.current.round == reply.round and self.order.save == sent.save:
            self.order = replace(self.order, save=None)
        return sent.save

    def is_behind(self, reply: Reply) -> bool:
        """Whether a newer order came while the process was busy with the one that this reply answers."""
        assert self.order is not None
        return self.order.current.round != reply.round or self.order.save is not None

    def whole(self, reply: Reply) -> Reply:
        """The reply of a round, also where it was made in two parts."""
        begun, self.begun = self.begun, None
        return reply if begun is None else replace(reply, account=reply.account.after(begun.account))

    def tell(self) -> Account:
        """The account of all that happened since it was told last."""
        found = self.account
        assert found is not None
        self.account = found.told()
        return found

    # Processes.

    def may_be_asked(self, now: float) -> bool:
        """Whether a sign of life is worth asking for: none is awaited, and none was refused just now."""
        return not self.is_asked and now - self.asked_at >= PING_SECONDS

    def ask(self, now: float) -> None:
        """A sign of life was asked for."""
        self.is_asked, self.asked_at = True, now

    def arrive(self, presence: Presence) -> bool:
        """A process gave a sign of life.

        Returns:
            Whether an order waits for it.
        """
        if presence.token == self.ended:
            return False
        self.presence = presence
        waited = self.state is State.LOST
        if self.state in (State.PENDING, State.LOST):
            self._become(State.READY)
        return waited

    def must_leave(self, nodes: frozenset[str]) -> bool:
        """Whether the process is on one of these nodes, which will be taken away; true once, since it is told then."""
        presence = self.presence
        if presence is None or presence.node not in nodes or presence.token == self.leaving:
            return False
        self.leaving = presence.token
        return True

    # Faults.

    def lose(self, now: float, on_purpose: bool = False) -> int | None:
        """The process was lost while it carried out an order.

        Args:
            now: Seconds.
            on_purpose: It failed or was asked to leave, and is ended now.

        Returns:
            The round whose state nobody saves any more, see `give`.
        """
        sent, self.sent = self.sent, None
        assert sent is not None
        self._become(State.LOST)
        self.lost_at = now
        if on_purpose and self.presence is not None:
            self.ended = self.presence.token
        self.presence = None
        return self._carry_over(sent.save)

    def move_away(self, reply: Reply, now: float) -> int | None:
        """The process saved its state in the middle of a round: the next one, on another node, goes on from there.

        Args:
            reply: With that state.
            now: Seconds.

        Returns:
            The round whose state nobody saves any more, see `give`.
        """
        order, state = self.order, reply.left
        assert order is not None
        assert state is not None
        origin = replace(order.origin, step=state.step, state=state, start=None)
        ahead = tuple(leg for leg in order.legs if leg.until_step > state.step)
        self.order = replace(order, origin=origin, legs=ahead or (order.current,))
        self.begun = reply
        return self.lose(now, on_purpose=True)

    def retire(self) -> None:
        """Leave a lost agent out for good."""
        self._become(State.RETIRED)

    def drop(self) -> None:
        """The others go on without the agent: what it did counts no longer."""
        if self.state is State.LOST:
            self._become(State.PENDING)
        self.order, self.account, self.images, self.begun = None, None, (), None

"""What becomes of an agent whose process is lost: waited for, given up, sent elsewhere, or left out for good."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ray.exceptions import RayActorError, RayError

from ..agents import AgentsConfig
from ..capture import LabelError, ModelError, UpdateError
from ..coordinator import EventKind, FencedError, Level, Listener, Phase, Wait
from ..plugins import PluginError
from ..refusal import ConfigError
from .agent_loop import Reply, StaleOrderError
from .failures import cause_of, first_line
from .member import Member, State
from .roster import Roster

# What an agent says of an update and a model that it was given, and would say again.
_REFUSALS = (ConfigError, LabelError, ModelError, PluginError, UpdateError)
# Failures of one agent within a round after which something is taken to kill it every time.
_MOST_FAILURES = 5


class Recovery:
    """Decides about lost agents and tells the coordinator what was decided.

    Args:
        members: All agents.
        roster: Their processes.
        listener: Who is told.
        config: How many agents the run needs, and how long it waits for one.
    """

    def __init__(self, members: Sequence[Member], roster: Roster, listener: Listener, config: AgentsConfig) -> None:
        self._members, self._roster, self._listener, self._config = members, roster, listener, config
        self._paused = False

    def failed(self, member: Member, error: RayError) -> None:
        """An order was not carried out.

        Raises:
            FencedError: Another coordinator has taken the run over.
            ConfigError, LabelError, ModelError, PluginError, UpdateError: The agent refuses what it was given.
        """
        cause = cause_of(error)
        if isinstance(cause, StaleOrderError):
            raise FencedError(f"Another coordinator has taken this run over ({cause}); this one ends.")
        if isinstance(cause, _REFUSALS):
            raise cause  # a new process would refuse it too
        # An error inside the agent, such as a device that failed: only a new process is sure to be rid of it.
        inside = not isinstance(error, RayActorError)
        self.forget(member, member.lose(time.monotonic(), on_purpose=inside))
        text = f"{{seed}} failed: {first_line(cause)}" if inside else "The process of {seed} was lost."
        self._listener.note(EventKind.AGENT_LOST, text, seeds=(member.seed,), level=Level.WARNING)
        (self._roster.restart if inside else self._roster.ping)(member)
        member.failures += 1
        if member.failures > _MOST_FAILURES:
            self._retire(member, cause)

    def _retire(self, member: Member, cause: Exception) -> None:
        """Something ends this agent every time."""
        member.retire()
        left = sum(one.state is not State.RETIRED for one in self._members)
        if left < self._config.minimum:
            raise cause
        text = f"{{seed}} failed {_MOST_FAILURES + 1} times in one round and is left out ({first_line(cause)})."
        self._listener.note(EventKind.SEED_DROPPED, text, seeds=(member.seed,), level=Level.ERROR)

    def move_away(self, member: Member, reply: Reply) -> None:
        """The agent was asked to leave its node and has saved its state in the middle of a round."""
        self.forget(member, member.move_away(reply, time.monotonic()))
        self._roster.restart(member)

    def forget(self, member: Member, round: int | None) -> None:
        """Tell that a state which an agent owed is not saved, if there is one."""
        if round is not None:
            self._listener.saved(round, member.position, "the process of an agent was lost before it wrote")

    def give_up(self, members: Sequence[Member], give_up: Callable[[float, int], bool]) -> set[int]:
        """Positions of the lost agents that the others no longer wait for.

        Args:
            members: Who makes the round.
            give_up: See `AgentGroup.run_round`.
        """
        now, gone = time.monotonic(), set()
        lost = [member for member in members if member.state in (State.LOST, State.RETIRED)]
        others = len(members) - len(lost)
        for member in lost:
            waited = now - member.lost_at
            if member.state is State.RETIRED:
                gone.add(member.position)
            elif give_up(waited, others):
                gone.add(member.position)
                text = "{seed} was not back in time; the others go on without it until it is."
                self._listener.note(EventKind.AGENT_GIVEN_UP, text, seeds=(member.seed,), level=Level.WARNING)
            else:
                self._roster.ping(member)
                if waited >= self._config.patience:
                    self._pause(others)
                continue
            member.drop()
        if self._paused and len(gone) == len(lost):
            self._paused = False
            self._listener.waits(None)
        return gone

    def _pause(self, others: int) -> None:
        if not self._paused:
            self._paused = True
            self._listener.waits(Wait(Phase.PAUSED, others, self._config.minimum))

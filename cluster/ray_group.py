"""The coordinator's agents as Ray actors: placed, called, waited for, and found again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from jaxtyping import Float, Int
from ray.exceptions import RayActorError, RayError, RayTaskError
from torch import Tensor

from ..agents import Account, Candidate
from ..capture import LabelError, ModelError, UpdateError
from ..coordinator import (
    AttackConfig,
    EventKind,
    FencedError,
    Level,
    Listener,
    Mode,
    Order,
    Phase,
    Storage,
    Wait,
    parts_by_label,
)
from ..refusal import ConfigError
from ..registration import Consensus, RegistrationConfig
from ..target import Target
from .agent_actor import AgentActor, AgentSpec
from .agent_loop import Reply, StaleOrderError
from .candidates import Candidates
from .failures import cause_of
from .registering import count_parts
from .resources import Share
from .roster import Roster, end_actors
from .shipping import put

# What an agent says of an update and a model that it was given, and would say again.
_REFUSALS = (ConfigError, LabelError, ModelError, UpdateError)
NAMESPACE = "gradinversion"
# One call descends; the others answer about progress, saved states and places.
_ACTOR_THREADS = 8
_WAIT_SECONDS = 0.1
# Failures of one agent within a round after which something is taken to kill it every time.
_MOST_FAILURES = 5


@dataclass
class _Call:
    """A round that an agent is making; references to the reply and to the images of each part."""

    position: int
    round: int
    images: list[Any]


class RayGroup:
    """One actor per seed, by name: Ray makes a lost one again wherever there is room, and a coordinator that was
    restarted finds them all.

    Args:
        config: The attack.
        share: Resources of each agent.
        name: Of the run; agents are called after it.
        detached: Agents outlive whoever made them.
        storage: Where they save their states, or None.
        fresh: The run begins now: agents of that name are left over from another one, and are ended.
    """

    def __init__(
        self, config: AttackConfig, share: Share, name: str, detached: bool, storage: Storage | None, fresh: bool = True
    ) -> None:
        self.seeds = tuple(config.seed + index for index in range(config.agents.count))
        self._config, self._share, self._storage = config, share, storage
        self._name, self._detached, self._fresh = name, detached, fresh
        self._target: list[Any] = []
        self._calls: dict[Any, _Call] = {}
        self._writes: dict[Any, tuple[int, int]] = {}
        self._orders: dict[int, Order] = {}
        self._absent: dict[int, float] = {}
        """Agents that were lost while they had an order, and since when."""
        self._failures: dict[int, int] = {}
        self._barred: set[int] = set()
        self._paused = False
        self._begun: dict[int, Reply] = {}

    # Placing.

    def open(self, target: Target, listener: Listener) -> None:
        """See `AgentGroup`."""
        self._listener = listener
        self._target = [put(target, target.model)]
        batch_bytes = 4 * target.update.image_count * int(torch.Size(target.update.image_shape).numel())
        parts = parts_by_label(target.interchangeable, count_parts(len(self.seeds), batch_bytes))
        self._candidates = Candidates(self.seeds, parts)
        if self._fresh and self._detached:
            end_actors([self._name_of(position) for position in range(len(self.seeds))], NAMESPACE)
        self._roster = Roster(len(self.seeds), self._make)

    def _name_of(self, position: int) -> str:
        return f"{self._name}-seed-{self.seeds[position]}"

    def _make(self, position: int) -> Any:
        config, seed = self._config, self.seeds[position]
        period = config.coordinator.period if config.coordinator.mode is Mode.ASYNC else None
        spec = AgentSpec(seed, config.objective, config.agents, self._share.threads, self._storage, period)
        return AgentActor.options(
            name=self._name_of(position),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached" if self._detached else None,
            max_restarts=-1,
            max_concurrency=_ACTOR_THREADS,
            num_cpus=self._share.cpus,
            num_gpus=self._share.gpus,
            scheduling_strategy="SPREAD",
        ).remote(spec)

    def present(self) -> frozenset[int]:
        """See `AgentGroup`."""
        self._hear(0.0)
        self._roster.ping_absent()
        return frozenset(self._roster.here) - self._barred

    def room(self) -> int:
        """See `AgentGroup`."""
        return self._share.room(ray.cluster_resources())  # type: ignore[no-untyped-call]

    def share(self, images: Float[Tensor, "batch channel height width"]) -> Any:
        """See `AgentGroup`."""
        return ray.put(images.numpy())

    # Rounds.

    def run_round(
        self,
        orders: Mapping[int, Order],
        enough: Callable[[int, int], bool],
        give_up: Callable[[float, int], bool],
    ) -> tuple[dict[int, Account], frozenset[int]]:
        """See `AgentGroup`."""
        self._failures.clear()
        busy = {call.position for call in self._calls.values()}
        for position, order in orders.items():
            earlier = self._orders.get(position)
            if order.save is None and position in busy and earlier is not None:
                order = replace(order, save=earlier.save)  # a write that is owed is not forgotten
            self._orders[position] = order
            if position not in busy:
                self._send(position)
        gone: set[int] = set()
        while not enough(self._done(orders, gone), len(orders) - len(gone)):
            self._hear(_WAIT_SECONDS)
            gone |= self._give_up(set(orders) - gone, give_up)
            self._tell_to_leave()
            self._listener.idle()
        return self._candidates.tell(position for position in orders if position not in gone), frozenset(gone)

    def renew(self, position: int, order: Order) -> None:
        """See `AgentGroup`."""
        known = self._orders.get(position)
        if known is None or known.origin.stint != order.origin.stint or known.current.round != order.current.round:
            return
        # An agent that left in the middle of a round is further than any checkpoint.
        if known.origin.step < order.origin.step:
            self._orders[position] = replace(order, save=known.save)

    def _done(self, orders: Mapping[int, Order], gone: set[int]) -> int:
        at_work = {call.position for call in self._calls.values()} | set(self._absent)
        return sum(position not in at_work for position in orders if position not in gone)

    def _send(self, position: int) -> None:
        order = self._orders[position]
        parts = self._candidates.parts
        method = self._roster.actors[position].run_round.options(num_returns=1 + len(parts))
        reply, *images = method.remote(order, self._target, parts)
        self._calls[reply] = _Call(position, order.current.round, images)

    def _hear(self, seconds: float) -> None:
        """Take what has come: replies, saved states, signs of life."""
        waiting = [*self._calls, *self._writes, *self._roster.awaited]
        if not waiting:
            time.sleep(seconds)
            return
        ready, _ = ray.wait(waiting, num_returns=1, timeout=seconds, fetch_local=False)
        if ready and len(waiting) > 1:
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        for reference in ready:
            if reference in self._calls:
                self._take_reply(self._calls.pop(reference), reference)
            elif reference in self._writes:
                self._take_write(*self._writes.pop(reference), reference)
            else:
                self._take_presence(reference)

    def _take_reply(self, call: _Call, reference: Any) -> None:
        position = call.position
        try:
            reply: Reply = ray.get(reference)
        except RayError as error:
            self._failed(position, error)
            return
        for text in reply.notes:
            self._listener.note(EventKind.NOTE, text)
        if position in self._begun:
            reply = _joined(self._begun.pop(position), reply)
        order = self._orders[position]
        if reply.left is not None:
            self._move_away(position, reply)
            return
        self._candidates.take(position, reply.account, call.images)
        if order.save is not None and reply.round == order.current.round:
            write = self._roster.actors[position].saved.remote(order.save)
            self._writes[write] = (position, order.save)
            self._orders[position] = replace(order, save=None)
        if reply.round != order.current.round:
            self._send(position)  # async: it was busy with an earlier round when this order came

    def _take_write(self, position: int, round: int, reference: Any) -> None:
        try:
            self._listener.saved(round, position, ray.get(reference))
        except RayTaskError as error:
            self._listener.saved(round, position, str(cause_of(error)))
        except RayError:
            self._listener.saved(round, position, "the process of an agent was lost while it wrote")

    def _take_presence(self, reference: Any) -> None:
        position = self._roster.take(reference)
        if position is None or self._absent.pop(position, None) is None:
            return
        self._listener.note(
            EventKind.AGENT_BACK, "{seed} got a process again and went on.", seeds=(self.seeds[position],)
        )
        self._send(position)

    # Faults.

    def _failed(self, position: int, error: RayError) -> None:
        cause = cause_of(error)
        if isinstance(cause, StaleOrderError):
            raise FencedError(f"Another coordinator has taken this run over ({cause}); this one ends.")
        if isinstance(cause, _REFUSALS):
            raise cause  # a new process would refuse it too
        seed = self.seeds[position]
        failures = self._failures[position] = self._failures.get(position, 0) + 1
        self._absent[position] = time.monotonic()
        if isinstance(error, RayActorError):
            self._listener.note(
                EventKind.AGENT_LOST, "The process of {seed} was lost.", seeds=(seed,), level=Level.WARNING
            )
            self._roster.lost(position)
        else:
            # An error inside the agent, such as a device that failed: only a new process is sure to be rid of it.
            self._listener.note(
                EventKind.AGENT_LOST, f"{{seed}} failed: {_first_line(cause)}", seeds=(seed,), level=Level.WARNING
            )
            self._roster.restart(position)
        if failures > _MOST_FAILURES:
            self._bar(position, cause)

    def _bar(self, position: int, cause: Exception) -> None:
        """Something ends this agent every time."""
        self._barred.add(position)
        if len(self._barred) > len(self.seeds) - self._config.agents.minimum:
            raise cause
        text = f"{{seed}} failed {_MOST_FAILURES + 1} times in one round and is left out ({_first_line(cause)})."
        self._listener.note(EventKind.SEED_DROPPED, text, seeds=(self.seeds[position],), level=Level.ERROR)

    def _give_up(self, positions: set[int], give_up: Callable[[float, int], bool]) -> set[int]:
        """The lost agents that the others no longer wait for."""
        now, gone = time.monotonic(), set()
        for position in positions & self._absent.keys():
            others = len(positions) - len(self._absent.keys() & positions)
            waited = now - self._absent[position]
            if position in self._barred or give_up(waited, others):
                del self._absent[position]
                self._candidates.drop(position)
                self._begun.pop(position, None)
                gone.add(position)
                if position not in self._barred:
                    text = "{seed} was not back in time; the others go on without it until it is."
                    self._listener.note(
                        EventKind.AGENT_GIVEN_UP, text, seeds=(self.seeds[position],), level=Level.WARNING
                    )
            else:
                self._roster.ping(position)
                if waited >= self._config.agents.patience:
                    self._pause(others)
        if self._paused and not self._absent.keys() & positions:
            self._paused = False
            self._listener.waits(None)
        return gone

    def _pause(self, others: int) -> None:
        if not self._paused:
            self._paused = True
            self._listener.waits(Wait(Phase.PAUSED, others, self._config.agents.minimum))

    def _tell_to_leave(self) -> None:
        for position in self._roster.ask_to_leave():
            text = "The node of {seed} will be taken away: it saves its state and goes on elsewhere."
            self._listener.note(EventKind.NODE_DRAINING, text, seeds=(self.seeds[position],), level=Level.WARNING)

    def _move_away(self, position: int, reply: Reply) -> None:
        """The agent saved its state in the middle of a round: a new process, on another node, goes on from there."""
        order, state = self._orders[position], reply.left
        assert state is not None
        origin = replace(order.origin, step=state.step, state=state, start=None)
        ahead = tuple(leg for leg in order.legs if leg.until_step > state.step)
        self._orders[position] = replace(order, origin=origin, legs=ahead or (order.current,))
        self._begun[position] = reply
        self._absent[position] = time.monotonic()
        self._roster.restart(position)

    # Candidates.

    def form_consensus(
        self, positions: Sequence[int], labels: Int[Tensor, " batch"], round: int, config: RegistrationConfig
    ) -> tuple[Consensus, Int[Tensor, "seed batch"]]:
        """See `AgentGroup`."""
        # In async mode the agents have better things to do.
        here = self._roster.here if self._config.coordinator.mode is Mode.SYNC else {}
        workers = {position: self._roster.actors[position] for position in here}
        return self._candidates.form_consensus(positions, workers, labels, round, config)

    def fetch(self, positions: Sequence[int]) -> list[Candidate]:
        """See `AgentGroup`."""
        return self._candidates.fetch(positions)

    # Looking on.

    def steps(self) -> dict[int, int]:
        """Where each agent is, of those that answer at once."""
        calls = {
            self._roster.actors[position].step.remote(): self.seeds[position] for position in list(self._roster.here)
        }
        ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=_WAIT_SECONDS) if calls else ([], [])
        found = {}
        for reference in ready:
            with contextlib.suppress(RayError):
                found[calls[reference]] = int(ray.get(reference))
        return found

    def settle(self, seconds: float) -> None:
        """See `AgentGroup`."""
        if self._writes:
            self._hear(seconds)

    def close(self) -> None:
        """See `AgentGroup`."""
        if self._target:
            self._roster.close()


def _joined(begun: Reply, rest: Reply) -> Reply:
    """One reply of a round that was made in two parts."""
    return replace(rest, account=rest.account.after(begun.account))


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]

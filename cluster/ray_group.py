"""The coordinator's agents as Ray actors: placed, called, waited for, and found again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray
import torch
from jaxtyping import Float, Int
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from ..agents import Account, Candidate
from ..coordinator import AttackConfig, EventKind, Level, Listener, Mode, Order, Part, Storage, parts_by_label
from ..registration import Consensus, RegistrationConfig
from ..target import Target
from .agent_actor import AgentActor, AgentSpec
from .agent_loop import Reply
from .candidates import Parts, fetch, register_candidates
from .failures import cause_of
from .member import Member, State
from .recovery import Recovery
from .registering import count_parts
from .resources import Allotment
from .roster import Roster, end_actors
from .shipping import put

NAMESPACE = "gradinversion"
# One call descends; the others answer about progress, saved states and places.
_ACTOR_THREADS = 8
_WAIT_SECONDS = 0.1


class RayGroup:
    """One actor per seed, by name: Ray makes a lost one again wherever there is room, and a coordinator that was
    restarted finds them all.

    Args:
        config: The attack.
        allotment: Resources of each agent.
        name: Of the run; agents are called after it.
        detached: Agents outlive whoever made them.
        storage: Where they save their states, or None.
        fresh: The run begins now: agents of that name are left over from another one, and are ended.
    """

    def __init__(
        self,
        config: AttackConfig,
        allotment: Allotment,
        name: str,
        detached: bool,
        storage: Storage | None,
        fresh: bool = True,
    ) -> None:
        self.seeds = tuple(config.seed + index for index in range(config.agents.count))
        self._config, self._allotment, self._storage = config, allotment, storage
        self._name, self._detached, self._fresh = name, detached, fresh
        self._members = [Member(position, seed) for position, seed in enumerate(self.seeds)]
        self._target: list[Any] = []
        self._calls: dict[Any, tuple[Member, list[Any]]] = {}
        """Rounds under way: who makes them, and references to the images of each part."""
        self._writes: dict[Any, tuple[Member, int]] = {}
        """States on their way to the storage: whose, and of which round."""
        self._parts_written: dict[Any, tuple[Member, Part]] = {}
        """The same in the middle of rounds."""

    # Placing.

    def place(self, listener: Listener) -> None:
        """See `AgentGroup`."""
        self._listener = listener
        if self._fresh and self._detached:
            end_actors([self._name_of(member) for member in self._members], NAMESPACE)
        self._roster = Roster(self._members, self._make)
        self._recovery = Recovery(self._members, self._roster, listener, self._config.agents)

    def open(self, target: Target) -> None:
        """See `AgentGroup`."""
        self._target = [put(target, target.model)]
        self._parts = self._split(target)

    def _split(self, target: Target) -> Parts:
        batch_bytes = 4 * target.update.image_count * int(torch.Size(target.update.image_shape).numel())
        return parts_by_label(target.interchangeable, count_parts(len(self.seeds), batch_bytes))

    def _name_of(self, member: Member) -> str:
        return f"{self._name}-seed-{member.seed}"

    def _make(self, member: Member) -> Any:
        config = self._config
        period = config.coordinator.period if config.coordinator.mode is Mode.ASYNC else None
        spec = AgentSpec(member.seed, config.objective, config.agents, self._allotment.threads, self._storage, period)
        return AgentActor.options(
            name=self._name_of(member),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached" if self._detached else None,
            max_restarts=-1,
            max_concurrency=_ACTOR_THREADS,
            num_cpus=self._allotment.cpus,
            num_gpus=self._allotment.gpus,
            scheduling_strategy="SPREAD",
        ).remote(spec)

    def present(self) -> frozenset[int]:
        """See `AgentGroup`."""
        self._hear(0.0)
        self._roster.ping_absent()
        return frozenset(member.position for member in self._present() if member.state is not State.RETIRED)

    def _present(self) -> list[Member]:
        return [member for member in self._members if member.presence is not None]

    def _at(self, positions: Iterable[int]) -> list[Member]:
        return [self._members[position] for position in positions]

    def room(self) -> int:
        """See `AgentGroup`."""
        return self._allotment.room(ray.cluster_resources())  # type: ignore[no-untyped-call]

    def put(self, images: Float[Tensor, "batch channel height width"]) -> Any:
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
        for member in self._members:
            member.failures = 0
        members = self._at(orders)
        for member in members:
            self._recovery.forget(member, member.give(orders[member.position], time.monotonic()))
            if member.state is State.READY:
                self._send(member)
        gone: set[int] = set()
        while not enough(sum(member.state is State.READY for member in members), len(members)):
            self._hear(_WAIT_SECONDS)
            gone |= self._recovery.give_up(members, give_up)
            members = [member for member in members if member.position not in gone]
            self._tell_to_leave()
            self._listener.idle()
        found = {member.position: member.tell() for member in members if member.account is not None}
        return found, frozenset(gone)

    def renew(self, position: int, order: Order) -> None:
        """See `AgentGroup`."""
        self._members[position].renew(order)

    def _send(self, member: Member) -> None:
        method = member.actor.run_round.options(num_returns=1 + len(self._parts))
        reply, *images = method.remote(member.send(), self._target, self._parts)
        self._calls[reply] = member, images

    def _hear(self, seconds: float) -> None:
        """Take what has come: replies, saved states, signs of life."""
        waiting = [*self._calls, *self._writes, *self._parts_written, *self._roster.awaited]
        if not waiting:
            time.sleep(seconds)
            return
        ready, _ = ray.wait(waiting, num_returns=1, timeout=seconds, fetch_local=False)
        if ready and len(waiting) > 1:
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        for reference in ready:
            if reference in self._calls:
                self._take_reply(*self._calls.pop(reference), reference)
            elif reference in self._writes:
                self._take_write(*self._writes.pop(reference), reference)
            elif reference in self._parts_written:
                self._take_part(*self._parts_written.pop(reference), reference)
            else:
                self._take_presence(reference)

    def _take_reply(self, member: Member, images: list[Any], reference: Any) -> None:
        try:
            reply: Reply = ray.get(reference)
        except RayError as error:
            self._recovery.failed(member, error)
            return
        for text in reply.notes:
            self._listener.note(EventKind.NOTE, text)
        reply = member.whole(reply)
        if reply.left is not None:
            self._recovery.move_away(member, reply)
            return
        save = member.answer(reply, images)
        if save is not None:
            self._writes[member.actor.saved.remote(save)] = member, save
        if member.is_behind(reply):
            self._send(member)  # async: it was busy with an earlier round when this order came

    def save_within(self, part: Part) -> None:
        """See `AgentGroup`."""
        members = self._at(part.positions)
        away = next((member for member in members if member.presence is None), None)
        if away is not None:
            # Without its state there is no checkpoint: what the others would write is of no use.
            self._listener.saved_within(part, away.position, None)
            return
        for member in members:
            self._parts_written[member.actor.save_within.remote(part.round, part.number)] = member, part

    def _take_write(self, member: Member, round: int, reference: Any) -> None:
        self._listener.saved(round, member.position, _written(reference))

    def _take_part(self, member: Member, part: Part, reference: Any) -> None:
        self._listener.saved_within(part, member.position, _written(reference))

    def _take_presence(self, reference: Any) -> None:
        member, presence = self._roster.take(reference)
        if presence is None or not member.arrive(presence):
            return
        text = "{seed} got a process again and went on."
        self._listener.note(EventKind.AGENT_BACK, text, seeds=(member.seed,))
        self._send(member)

    def _tell_to_leave(self) -> None:
        for member in self._roster.ask_to_leave():
            text = "The node of {seed} will be taken away: it saves its state and goes on elsewhere."
            self._listener.note(EventKind.NODE_DRAINING, text, seeds=(member.seed,), level=Level.WARNING)

    # Candidates.

    def form_consensus(
        self, positions: Sequence[int], labels: Int[Tensor, " batch"], round: int, config: RegistrationConfig
    ) -> tuple[Consensus, Int[Tensor, "seed batch"]]:
        """See `AgentGroup`."""
        members = self._at(positions)
        # In async mode the agents have better things to do.
        sync = self._config.coordinator.mode is Mode.SYNC
        workers = [member.actor for member in members if sync and member.presence is not None]
        return register_candidates(members, self._parts, workers, labels, round, config)

    def fetch(self, positions: Sequence[int]) -> list[Candidate]:
        """See `AgentGroup`."""
        return fetch(self._at(positions), self._parts)

    # Looking on.

    def steps(self) -> dict[int, int]:
        """Where each agent is, of those that answer at once."""
        calls = {member.actor.step.remote(): member.seed for member in self._present()}
        ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=_WAIT_SECONDS) if calls else ([], [])
        found = {}
        for reference in ready:
            with contextlib.suppress(RayError):
                found[calls[reference]] = int(ray.get(reference))
        return found

    def await_writes(self, seconds: float) -> None:
        """See `AgentGroup`."""
        if self._writes or self._parts_written:
            self._hear(seconds)

    def close(self) -> None:
        """See `AgentGroup`."""
        for member in self._members:
            if member.actor is not None:
                ray.kill(member.actor)


def _written(reference: Any) -> Any:
    """What an agent says of a state that it was to save, or why there is none."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        return str(cause_of(error))
    except RayError:
        return "the process of an agent was lost while it wrote"

"""The thread that owns an agent's optimiser: it takes orders, descends, answers. Knows nothing of Ray."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..agents import Agent, Candidate, Target
from ..coordinator import Leg, Order, StateFile, Storage, StorageError, read_tensors, state_name, write_state


class StaleOrderError(RuntimeError):
    """An order of a coordinator that another one has replaced, or one that a newer order has overtaken."""


@dataclass(frozen=True)
class Reply:
    """The answer to an order."""

    round: int
    candidate: Candidate
    notes: tuple[str, ...] = ()
    """What a person should know about the objective; told once by each process."""
    left: StateFile | None = None
    """The agent was asked to leave and has not finished the round: here it goes on."""


@dataclass
class _Task:
    order: Order
    target: Any
    answer: Future[Reply]


class AgentLoop:
    """Carries out orders, one at a time, in a thread of its own.

    In ``sync`` mode it stands still between two rounds; in ``async`` mode it descends on to the last step, and an order
    only tells it the newest consensus and when to answer.

    Args:
        seed: Of the agent.
        make: Builds the agent.
        fetch: Turns what `AgentGroup.share` gave (and what came as the target) into the thing itself.
        storage: Where states are saved, or None.
        chunk: ``async``: steps between two looks for an order; None in ``sync`` mode.
        threads: Compute threads.
    """

    def __init__(
        self,
        seed: int,
        make: Callable[[Target], Agent],
        fetch: Callable[[Any], Any],
        storage: Storage | None,
        chunk: int | None,
        threads: int,
    ) -> None:
        self._seed, self._make, self._fetch, self._storage = seed, make, fetch, storage
        self._chunk, self._threads = chunk, threads
        self.token = uuid.uuid4().hex[:12]
        """Names this process; an old one behind a partition writes files of another name."""
        self._agent: Agent | None = None
        self._stint: tuple[int, int] | None = None
        self._epoch = 0
        self._queue: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._task: _Task | None = None
        self._last: Reply | None = None
        self._unseen: list[Candidate] = []
        self._consensus: tuple[int, Tensor | None] = (-1, None)
        self._urgent, self._leaving = threading.Event(), threading.Event()
        self._writes: dict[int, Future[StateFile]] = {}
        threading.Thread(target=self._serve, daemon=True, name=f"seed {seed}").start()

    def submit(self, order: Order, target: Any) -> Future[Reply]:
        """Take an order; the answer comes when its last leg is done.

        Raises:
            StaleOrderError: (in the answer) Another coordinator, or a newer order, has taken over.
        """
        task = _Task(order, target, Future())
        if order.epoch < self._epoch:
            task.answer.set_exception(StaleOrderError(f"epoch {order.epoch} was replaced by {self._epoch}"))
            return task.answer
        newer, self._epoch = order.epoch > self._epoch, order.epoch
        self._queue.put(task)
        if newer:
            # What the old coordinator wanted is of no use to the new one. (After the order is there: the loop takes
            # orders whenever it is urged to.)
            self._urgent.set()
        return task.answer

    def leave(self) -> None:
        """Save the state as soon as possible and answer the order with it."""
        self._leaving.set()
        self._urgent.set()

    def saved(self, round: int) -> StateFile:
        """The state of a round, once it is written.

        Raises:
            StorageError: It could not be written.
        """
        return self._writes[round].result()

    @property
    def step(self) -> int:
        """Where the agent is; safe to read from another thread."""
        return 0 if self._agent is None else self._agent.step

    def _serve(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            self._take_order()
            try:
                self._move()
                self._answer()
            # Whatever went wrong is the coordinator's to decide about.
            except BaseException as error:
                self._stint = None
                if self._task is not None:
                    self._task.answer.set_exception(error)
                    self._task = None

    def _take_order(self) -> None:
        """The newest order; waits for one where there is nothing else to do."""
        while not self._queue.empty() or not self._has_work():
            task = self._queue.get()
            if self._task is not None:
                self._task.answer.set_exception(StaleOrderError("a newer order came"))
            self._task = task
        self._urgent.clear()

    def _has_work(self) -> bool:
        if self._task is not None:
            return True
        agent = self._agent
        if self._leaving.is_set():
            return False
        return self._chunk is not None and agent is not None and self._stint is not None and not agent.finished

    def _move(self) -> None:
        task = self._task
        if task is not None:
            if self._is_done(task.order):
                return
            self._begin(task)
        agent = self._running
        if self._leaving.is_set():
            return
        if self._chunk is not None:
            until = min(agent.step + self._chunk, agent.iterations)
            self._unseen.append(agent.run(until, self._consensus[1], self._urgent.is_set))
            return
        assert task is not None
        for leg in task.order.legs:
            if agent.step < leg.until_step and not self._urgent.is_set():
                self._unseen.append(agent.run(leg.until_step, self._consensus_of(leg), self._urgent.is_set))

    def _is_done(self, order: Order) -> bool:
        """Whether this order was answered before, so that it is only answered again."""
        return self._stint == order.origin.stint and self._last is not None and self._last.round == order.current.round

    def _begin(self, task: _Task) -> None:
        """Stand where the order begins, unless the agent is on its way already."""
        origin = task.order.origin
        if self._stint != origin.stint:
            if self._agent is None:
                self._agent = self._make(self._fetch(task.target))
            self._unseen, self._last, self._consensus = [], None, (-1, None)
            if origin.state is not None:
                assert self._storage is not None
                self._agent.restore(read_tensors(self._storage, origin.state))
            else:
                self._agent.join(origin.step, None if origin.start is None else self._fetch(origin.start))
            self._stint = origin.stint
        if self._chunk is not None:
            self._consensus = (task.order.current.round, self._consensus_of(task.order.current))

    def _consensus_of(self, leg: Leg) -> Tensor | None:
        if self._consensus[0] != leg.round:
            images = None if leg.consensus is None else self._fetch(leg.consensus)[list(leg.order)]
            self._consensus = (leg.round, images)
        return self._consensus[1]

    @property
    def _running(self) -> Agent:
        assert self._agent is not None
        return self._agent

    def _answer(self) -> None:
        task, agent = self._task, self._running
        if task is None:
            return
        leg = task.order.current
        if self._last is None or not self._is_done(task.order):
            done = agent.step >= leg.until_step
            if not done and not self._leaving.is_set():
                return
            notes = agent.messages if self._last is None else ()
            left = None if done else self._write(leg.round, "left").result()
            reply = Reply(leg.round, self._newest(agent), notes, left)
            if done:
                self._last = reply
        else:
            reply = self._last
        if task.order.save is not None and reply.left is None and task.order.save not in self._writes:
            self._writes = {task.order.save: self._write(task.order.save)}
        self._task = None
        task.answer.set_result(reply)

    def _newest(self, agent: Agent) -> Candidate:
        """The candidate as it stands, with everything recorded since the last answer."""
        seen, self._unseen = self._unseen, []
        newest = seen[-1] if seen else agent.candidate()
        return replace(
            newest,
            trace=tuple(row for candidate in seen for row in candidate.trace),
            messages=tuple(text for candidate in seen for text in candidate.messages),
            seconds=sum(candidate.seconds for candidate in seen),
        )

    def _write(self, round: int, suffix: str = "") -> Future[StateFile]:
        """Begin to write the state; the agent may move on meanwhile, since a state is a copy."""
        agent = self._running
        written: Future[StateFile] = Future()
        name = state_name(round, self._seed, self.token + suffix)
        state, step = agent.state(), agent.step

        def write() -> None:
            try:
                if self._storage is None:
                    raise StorageError("this run keeps no checkpoints")
                written.set_result(write_state(self._storage, name, state, step))
            except BaseException as error:
                written.set_exception(error)

        threading.Thread(target=write, daemon=True, name=f"state of seed {self._seed}").start()
        return written

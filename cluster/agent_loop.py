"""The thread that owns an agent's optimiser: it takes orders, descends, answers. Knows nothing of Ray."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..agents import Account, Agent
from ..coordinator import Leg, Order, StateFile, Storage, StorageError, read_tensors, state_name, write_state
from ..target import Target

# At most so long does the file of a state wait for the next round to begin.
_BETWEEN_ROUNDS_SECONDS = 10.0
# States on their way, or told of: those of two rounds are awaited at once (`Saving`).
_MOST_WRITES = 3
# Niceness of what goes on beside the steps (0: as everything, 19: last).
_BESIDE = 10


class StaleOrderError(RuntimeError):
    """An order of a coordinator that another one has replaced, or one that a newer order has overtaken."""


@dataclass(frozen=True)
class Reply:
    """The answer to an order."""

    round: int
    account: Account
    images: Tensor | None
    """The seed's batch, normalised; None where it travels apart."""
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
        self._submitting = threading.Lock()
        self._task: _Task | None = None
        self._last: Reply | None = None
        self._unseen: list[Account] = []
        self._error: BaseException | None = None
        self._consensus: tuple[int, Tensor | None] = (-1, None)
        self._urgent, self._leaving = threading.Event(), threading.Event()
        self._moving = threading.Event()
        """Not set from the end of a round until the first step of the next: others work on the consensus."""
        self._writes: dict[int, Future[StateFile]] = {}
        self._files = 0
        threading.Thread(target=self._serve, daemon=True, name=f"seed {seed}").start()

    def submit(self, order: Order, target: Any) -> Future[Reply]:
        """Take an order; the answer comes when its last leg is done.

        Raises:
            StaleOrderError: (in the answer) Another coordinator, or a newer order, has taken over.
        """
        task = _Task(order, target, Future())
        # Two coordinators may ask at once: the queue holds orders in the order of their epochs.
        with self._submitting:
            if order.epoch < self._epoch:
                task.answer.set_exception(StaleOrderError(f"epoch {order.epoch} was replaced by {self._epoch}"))
                return task.answer
            newer, self._epoch = order.epoch > self._epoch, order.epoch
            self._queue.put(task)
            if newer:
                # What the old coordinator wanted is of no use to the new one. (After the order is there: the loop
                # takes orders whenever it is urged to.)
                self._urgent.set()
        return task.answer

    def leave(self) -> None:
        """Save the state as soon as possible and answer the order with it."""
        self._leaving.set()
        self._urgent.set()
        self._moving.set()

    def saved(self, round: int) -> StateFile:
        """The state of a round, once it is written.

        Raises:
            StorageError: It could not be written, or this process was never asked to.
        """
        write = self._writes.get(round)
        if write is None:
            raise StorageError(f"the process that was to write the state of seed {self._seed} was lost")
        return write.result()

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
                task, self._task = self._task, None
                if task is None:
                    self._error = error  # nobody is waiting: the next order is answered with it
                else:
                    task.answer.set_exception(error)

    def _take_order(self) -> None:
        """The newest order; waits for one where there is nothing else to do."""
        # First: whoever urges from here on has already put where it is seen what it urges for.
        self._urgent.clear()
        while not self._queue.empty() or not self._has_work():
            task = self._queue.get()
            if self._task is not None:
                self._task.answer.set_exception(StaleOrderError("a newer order came"))
            self._task = task

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
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._is_done(task.order):
                return
            self._begin(task)
        if self._leaving.is_set():
            return
        if self._chunk is not None:
            self._descend(min(self._running.step + self._chunk, self._running.iterations), self._consensus[1])
            return
        assert task is not None
        for leg in task.order.legs:
            if self._running.step < leg.until_step and not self._urgent.is_set():
                self._descend(leg.until_step, self._consensus_of(leg))
                if leg is not task.order.current:
                    self._unseen.clear()  # the process that made this round first has told of it

    def _descend(self, until_step: int, consensus: Tensor | None) -> None:
        agent, began = self._running, self._running.step

        def interrupted() -> bool:
            if agent.step > began:
                self._moving.set()
            return self._urgent.is_set()

        self._unseen.append(agent.run(until_step, consensus, interrupted))
        self._moving.set()

    def _is_done(self, order: Order) -> bool:
        """Whether this order was answered before, so that it is only answered again."""
        return self._stint == order.origin.stint and self._last is not None and self._last.round == order.current.round

    def _begin(self, task: _Task) -> None:
        """Stand where the order begins, unless the agent is on its way already."""
        origin = task.order.origin
        if self._stint != origin.stint:
            if self._agent is None:
                self._agent = self._make(self._fetch(task.target))
            self._unseen, self._last, self._consensus, self._writes = [], None, (-1, None), {}
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
            images = None if leg.consensus is None else self._fetch(leg.consensus)
            if images is not None and leg.order != tuple(range(len(leg.order))):
                images = images[list(leg.order)]
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
        answered = self._is_done(task.order)
        if not answered:
            done = agent.step >= leg.until_step
            if not done and not self._leaving.is_set():
                return
            notes = agent.messages if self._last is None else ()
            if not done:
                self._moving.set()  # it leaves: nothing else is worth waiting for
            left = None if done else self._write(leg.round, Future()).result()
            reply = Reply(leg.round, self._newest(agent), agent.images, notes, left)
            if done:
                self._last = reply
        else:
            assert self._last is not None
            reply = self._last
        save = task.order.save
        written: Future[StateFile] | None = None
        if save is not None and reply.left is None and not self._is_saved(save):
            written = Future()
            older = list(self._writes.items())[1 - _MOST_WRITES :]
            self._writes = {**dict(older), save: written}
        between_rounds = self._chunk is None and not answered and not agent.finished and not self._leaving.is_set()
        (self._moving.clear if between_rounds else self._moving.set)()
        self._task = None
        task.answer.set_result(reply)
        # Last: others wait for the answer, and nobody for the state.
        if save is not None and written is not None:
            self._write(save, written)

    def _newest(self, agent: Agent) -> Account:
        """Where the seed stands, with everything recorded since the last answer."""
        seen, self._unseen = self._unseen, []
        return reduce(lambda earlier, later: later.after(earlier), [*seen, agent.account()])

    def _is_saved(self, round: int) -> bool:
        """Whether the state of a round is written, or on its way; one that failed is tried again."""
        write = self._writes.get(round)
        return write is not None and not (write.done() and write.exception() is not None)

    def _write(self, round: int, written: Future[StateFile]) -> Future[StateFile]:
        """Begin to write the state; the agent may move on meanwhile, since a state is a copy."""
        agent = self._running
        # A name of its own for each file: a write that the storage kept waiting must not replace a later one.
        self._files += 1
        name = state_name(round, self._seed, f"{self.token}-{self._files}")
        try:
            state, step = agent.state(), agent.step
        except BaseException as error:
            written.set_exception(error)
            raise

        def write() -> None:
            give_way()
            # What happens between two rounds keeps all agents waiting, and may need every processor.
            self._moving.wait(_BETWEEN_ROUNDS_SECONDS)
            try:
                if self._storage is None:
                    raise StorageError("this run keeps no checkpoints")
                written.set_result(write_state(self._storage, name, state, step))
            except BaseException as error:
                written.set_exception(error)

        threading.Thread(target=write, daemon=True, name=f"state of seed {self._seed}").start()
        return written


def give_way() -> None:
    """Let this thread run when no other one wants to."""
    if sys.platform == "linux":  # elsewhere priorities belong to processes
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BESIDE)

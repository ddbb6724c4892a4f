"""The thread that owns an agent's optimiser: it takes orders, descends, answers. Knows nothing of Ray."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..agents import Account, Agent
from ..coordinator import Leg, Order, StateFile, Storage, read_tensors
from ..target import Target
from .state_writer import Asked, StateWriter


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


@dataclass
class _Stint:
    """What the agent did and knows since it stands where an order's origin put it."""

    identity: tuple[int, int]
    last: Reply | None = None
    """The answer to the last round."""
    unseen: list[Account] = field(default_factory=list)
    """What was recorded since."""
    consensus: tuple[int, Tensor | None] = (-1, None)
    """The newest, with its round."""


class AgentLoop:
    """Carries out orders, one at a time, in a thread of its own.

    In ``sync`` mode it stands still between two rounds; in ``async`` mode it descends on to the last step, and an order
    only tells it the newest consensus and when to answer.

    Args:
        seed: Of the agent.
        make: Builds the agent.
        fetch: Turns what `AgentGroup.put` gave (and what came as the target) into the thing itself.
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
        self._make, self._fetch, self._storage = make, fetch, storage
        self._chunk, self._threads = chunk, threads
        self._writer = StateWriter(seed, storage)
        self._agent: Agent | None = None
        self._stint: _Stint | None = None
        self._epoch = 0
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        """Orders; None wakes the loop for what was asked beside them."""
        self._asked: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        self._submitting = threading.Lock()
        self._task: _Task | None = None
        self._error: BaseException | None = None
        self._urgent, self._leaving = threading.Event(), threading.Event()
        threading.Thread(target=self._serve, daemon=True, name=f"seed {seed}").start()

    def submit(self, order: Order, target: Any) -> Future[Reply]:
        """Take an order; the answer comes when its last leg is done.

        Raises:
            StaleOrderError: (in the answer) Another coordinator, or a newer order, has taken over.
        """
        task = _Task(order, target, Future())
        # Two coordinators may ask at once: the queue holds orders by rising epoch.
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
        self._writer.go_on()

    def save_within(self, round: int, part: int) -> tuple[StateFile, Account]:
        """The file with the agent's state in the middle of a round, once it is written, and what happened since the
        round began.

        Raises:
            StorageError: It could not be written, or this process stands nowhere yet.
        """
        asked = Asked(round, part)
        self._asked.put(asked)
        self._queue.put(None)
        self._urgent.set()
        return asked.found.result()

    def saved(self, round: int) -> StateFile:
        """The state of a round, once it is written.

        Raises:
            StorageError: It could not be written, or this process was never asked to.
        """
        return self._writer.saved(round)

    @property
    def token(self) -> str:
        """Names this process."""
        return self._writer.token

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
                self._save_within()
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
            if task is None:
                continue
            if self._task is not None:
                self._task.answer.set_exception(StaleOrderError("a newer order came"))
            self._task = task

    def _has_work(self) -> bool:
        if self._task is not None or not self._asked.empty():
            return True
        if self._leaving.is_set():
            return False
        agent = self._agent
        return self._chunk is not None and agent is not None and self._stint is not None and not agent.finished

    # Descending.

    def _move(self) -> None:
        task = self._task
        if task is not None:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._answer_to(task.order) is not None:
                return
            self._begin(task)
        if self._leaving.is_set() or self._stint is None:
            return
        agent, stint = self._running
        if self._chunk is not None:
            self._descend(min(agent.step + self._chunk, agent.iterations), stint.consensus[1])
            return
        if task is None:
            return
        for leg in task.order.legs:
            if agent.step < leg.until_step and not self._urgent.is_set():
                self._descend(leg.until_step, self._consensus_of(leg))
                if leg is not task.order.current:
                    stint.unseen.clear()  # the process that made this round first has told of it

    def _descend(self, until_step: int, consensus: Tensor | None) -> None:
        agent, stint = self._running
        began = agent.step

        def interrupted() -> bool:
            if agent.step > began:
                self._writer.go_on()
            return self._urgent.is_set()

        stint.unseen.append(agent.run(until_step, consensus, interrupted))
        self._writer.go_on()

    def _begin(self, task: _Task) -> None:
        """Stand where the order begins, unless the agent is on its way already."""
        origin = task.order.origin
        if self._stint is None or self._stint.identity != origin.stint:
            if self._agent is None:
                self._agent = self._make(self._fetch(task.target))
            self._stint = None  # until the agent stands there: an error on the way leaves it nowhere
            self._writer.forget()
            if origin.state is not None:
                assert self._storage is not None
                self._agent.restore(read_tensors(self._storage, origin.state))
            else:
                self._agent.join(origin.step, None if origin.start is None else self._fetch(origin.start))
            self._stint = _Stint(origin.stint)
        if self._chunk is not None:
            leg = task.order.current
            self._stint.consensus = (leg.round, self._consensus_of(leg))

    def _consensus_of(self, leg: Leg) -> Tensor | None:
        _, stint = self._running
        if stint.consensus[0] != leg.round:
            images = None if leg.consensus is None else self._fetch(leg.consensus)
            if images is not None and leg.permutation != tuple(range(len(leg.permutation))):
                images = images[list(leg.permutation)]
            stint.consensus = (leg.round, images)
        return stint.consensus[1]

    @property
    def _running(self) -> tuple[Agent, _Stint]:
        assert self._agent is not None
        assert self._stint is not None
        return self._agent, self._stint

    # Answering.

    def _answer_to(self, order: Order) -> Reply | None:
        """The reply to this order, where it was answered before, so that it is only answered again."""
        stint = self._stint
        if stint is None or stint.identity != order.origin.stint or stint.last is None:
            return None
        return stint.last if stint.last.round == order.current.round else None

    def _answer(self) -> None:
        task = self._task
        if task is None:
            return
        agent, _ = self._running
        known = self._answer_to(task.order)
        reply = known if known is not None else self._reply(task.order.current)
        if reply is None:
            return
        save = task.order.save
        written = self._writer.promise(save) if save is not None and reply.left is None else None
        between_rounds = self._chunk is None and known is None and not agent.finished and not self._leaving.is_set()
        (self._writer.hold if between_rounds else self._writer.go_on)()
        self._task = None
        task.answer.set_result(reply)
        # Last: others wait for the answer, and nobody for the state.
        if save is not None and written is not None:
            self._writer.write(save, agent, written)

    def _reply(self, leg: Leg) -> Reply | None:
        """The reply to a round that is done, or that the agent leaves in the middle; None where it goes on."""
        agent, stint = self._running
        notes = agent.messages if stint.last is None else ()
        if agent.step >= leg.until_step:
            stint.last = Reply(leg.round, self._newest(agent, stint), agent.images, notes)
            return stint.last
        if not self._leaving.is_set():
            return None
        self._writer.go_on()  # nothing else is worth waiting for
        left: Future[StateFile] = Future()
        self._writer.write(leg.round, agent, left)
        return Reply(leg.round, self._newest(agent, stint), agent.images, notes, left.result())

    def _save_within(self) -> None:
        """Begin to write what was asked for beside the orders."""
        while not self._asked.empty():
            asked, stint = self._asked.get(), self._stint
            if stint is None or self._agent is None:
                asked.refuse("the process of an agent had not begun its round yet")
                continue
            told = stint.last.account if stint.last is not None and stint.last.round == asked.round else None
            accounts = [*([] if told is None else [told]), *stint.unseen, self._agent.account()]
            asked.write(self._writer, self._agent, reduce(lambda earlier, later: later.after(earlier), accounts))

    @staticmethod
    def _newest(agent: Agent, stint: _Stint) -> Account:
        """Where the seed stands, with everything recorded since the last answer."""
        seen, stint.unseen = stint.unseen, []
        return reduce(lambda earlier, later: later.after(earlier), [*seen, agent.account()])

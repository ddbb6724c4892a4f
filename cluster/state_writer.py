"""An agent's states on their way to the storage, beside the steps. Knows nothing of Ray."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import uuid
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..agents import Account, Agent
from ..coordinator import StateFile, Storage, StorageError, state_name, write_state

# At most so long does the file of a state wait for the next round to begin.
_BETWEEN_ROUNDS_SECONDS = 10.0
# States on their way, or told of: those of two rounds are awaited at once (`Saving`).
_MOST_WRITES = 3
# Niceness of what goes on beside the steps (0: as everything, 19: last).
_BESIDE = 10


class StateWriter:
    """Writes the states of one seed, each in a thread of its own.

    Args:
        seed: Of the agent.
        storage: Where states are saved, or None.
    """

    def __init__(self, seed: int, storage: Storage | None) -> None:
        self._seed, self._storage = seed, storage
        self.token = uuid.uuid4().hex[:12]
        """Names this process; an old one behind a partition writes files of another name."""
        self._writes: dict[int, Future[StateFile]] = {}
        self._files = 0
        self._moving = threading.Event()

    def hold(self) -> None:
        """Begin no file for now: between two rounds others work on the consensus, and may need every processor."""
        self._moving.clear()

    def go_on(self) -> None:
        """Write what was held back."""
        self._moving.set()

    def forget(self) -> None:
        """What was written before counts no longer."""
        self._writes = {}

    def promise(self, round: int) -> Future[StateFile] | None:
        """The place for the state of a round, which `saved` waits for from now on; `write` fills it.

        Returns:
            None where the state is written, or on its way; one that failed is tried again.
        """
        write = self._writes.get(round)
        if write is not None and not (write.done() and write.exception() is not None):
            return None
        written: Future[StateFile] = Future()
        older = list(self._writes.items())[1 - _MOST_WRITES :]
        self._writes = {**dict(older), round: written}
        return written

    def saved(self, round: int) -> StateFile:
        """The state of a round, once it is written.

        Raises:
            StorageError: It could not be written, or this process was never asked to.
        """
        write = self._writes.get(round)
        if write is None:
            raise StorageError(f"the process that was to write the state of seed {self._seed} was lost")
        return write.result()

    def write(self, round: int, agent: Agent, written: Future[StateFile], part: int | None = None) -> None:
        """Begin to write the agent's state; the agent may move on meanwhile, since a state is a copy.

        Args:
            round: Names the file.
            agent: Whose state.
            written: Gets the file, or why there is none.
            part: Of the round, see `state_name`.
        """
        # A name of its own for each file: a write that the storage kept waiting must not replace a later one.
        self._files += 1
        name = state_name(round, self._seed, f"{self.token}-{self._files}", part)
        try:
            state, step = agent.state(), agent.step
        except BaseException as error:
            written.set_exception(error)
            raise

        def write() -> None:
            give_way()
            self._moving.wait(_BETWEEN_ROUNDS_SECONDS)
            try:
                if self._storage is None:
                    raise StorageError("this run keeps no checkpoints")
                written.set_result(write_state(self._storage, name, state, step))
            except BaseException as error:
                written.set_exception(error)

        threading.Thread(target=write, daemon=True, name=f"state of seed {self._seed}").start()


@dataclass(frozen=True)
class Asked:
    """To save a seed's state in the middle of a round."""

    round: int
    part: int
    found: Future[tuple[StateFile, Account]] = field(default_factory=Future)
    """The file, and what happened to the seed since the round began."""

    def refuse(self, reason: str) -> None:
        """There is nothing to save."""
        self.found.set_exception(StorageError(reason))

    def write(self, writer: StateWriter, agent: Agent, account: Account) -> None:
        """Begin to write the agent's state; see `StateWriter.write`."""

        def tell(written: Future[StateFile]) -> None:
            error = written.exception()
            if error is None:
                self.found.set_result((written.result(), account))
            else:
                self.found.set_exception(error)

        written: Future[StateFile] = Future()
        written.add_done_callback(tell)
        writer.write(self.round, agent, written, self.part)


def give_way() -> None:
    """Let this thread run when no other one wants to."""
    if sys.platform == "linux":  # elsewhere priorities belong to processes
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BESIDE)

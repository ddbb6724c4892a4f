"""Checkpoints on the way: each is completed while rounds go on, one after the other."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from ..agents import Account
from ..storage.folders import Storage, StorageError
from ..storage.tensor_file import CheckpointError, StateFile
from .checkpoints import CheckpointStore, FencedError
from .events import EventKind, Level
from .parts import AwaitedRound, Part, UnderWay
from .progress import Progress, rows

METRICS_FILE = "metrics.jsonl"
METRICS_VERSION = 1
"""Of its lines; it rises when a key changes its meaning or goes, not when one is added."""
EVENTS_FILE = "events.jsonl"
# Rounds whose states are awaited: those of one are written while the next one runs, at whose end its own are due.
_MOST_AWAITED = 2
# More than one coordinator makes within a round.
_PARTS = 1_000_000
# A storage that fails is tried again for less; this is for one that does not answer at all.
_CLOSE_SECONDS = 180.0


class Saving:
    """Brings rounds into the storage without keeping the rounds waiting.

    A round is skipped while the states of two before it are still being written: a slow storage makes checkpoints
    rarer, never the attack slower. What fails is said, and tried again with the next round.

    Args:
        store: Where checkpoints go, or None to keep none.
        storage: Of the run, for its curves and events.
        seeds: By position.
        note: `EventLog.note`.
        every: Seconds without a checkpoint after which one within a round is due; None: never.
    """

    def __init__(
        self,
        store: CheckpointStore | None,
        storage: Storage | None,
        seeds: tuple[int, ...],
        note: Callable[..., None],
        every: float | None = None,
    ) -> None:
        self._store, self._storage, self._seeds, self._note = store, storage, seeds, note
        if storage is not None:
            storage.listener = self._hears
        self._every, self._since, self._parts = every, time.monotonic(), 0
        self._under_way: UnderWay | None = None
        self.epoch = 1
        """Of the coordinator."""
        self._rounds: list[AwaitedRound] = []
        """Those of which parts are still awaited, or the one before is; the oldest first."""
        self._written: tuple[AwaitedRound, Future[None]] | None = None
        """Whole, and on its way."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._failing = False
        self._curves: Future[None] | None = None
        self._given_up: Part | None = None
        """What seeds wrote for it before, or write yet, lies about."""
        self._dropping: Future[None] | None = None
        self.newest = -1
        """The newest whole round."""

    @property
    def free(self) -> bool:
        """Whether the next round can be saved."""
        return self._store is not None and sum(one.part is None for one in self._rounds) < _MOST_AWAITED

    @property
    def pending(self) -> bool:
        """Whether anything is on its way."""
        return bool(self._rounds) or self._written is not None

    def begin(self, index: int, positions: Iterable[int]) -> None:
        """A round whose seeds at these positions save their states."""
        assert self.free
        self._rounds.append(AwaitedRound(index, frozenset(positions)))

    def _awaited(self, index: int, part: int | None = None) -> AwaitedRound | None:
        return next((round for round in self._rounds if (round.index, round.part) == (index, part)), None)

    # Within a round.

    def enter(
        self, index: int, positions: tuple[int, ...], progress: Progress, steps: tuple[int, int] | None = None
    ) -> None:
        """Seeds at these positions begin a round; until `leave`, parts of it may be due.

        Args:
            index: The round.
            positions: Of the seeds.
            progress: The coordinator's, which does not change but for its events while the round runs.
            steps: Where the round begins and ends; None where seeds do not wait for each other.
        """
        # What went before, such as long preparations, is not lost with a process: the time counts from here.
        self._under_way, self._since = UnderWay(index, positions, progress, steps), time.monotonic()

    def leave(self) -> None:
        """The round has ended."""
        self._under_way = None

    def due(self) -> Part | None:
        """The checkpoint within the round that is due now, if there is one; from here on it is awaited."""
        now, current = time.monotonic(), self._under_way
        if self._every is None or self._store is None or current is None or now - self._since < self._every:
            return None
        # One at a time, and only when those before are whole: a slow storage makes them rarer.
        if self._written is not None or any(one.part is not None or one.index < current.index for one in self._rounds):
            return None
        self._since, self._parts = now, self._parts + 1
        part = Part(current.index, self.epoch * _PARTS + self._parts, current.positions)
        self._drop_given_up()
        self._rounds.insert(0, AwaitedRound(part.round, frozenset(part.positions), part.number, current.steps))
        self._rounds[0].facts, self._rounds[0].tensors = current.progress.facts(), current.progress.tensors()
        return part

    def add_state_within(self, part: Part, position: int, found: tuple[StateFile, Account] | str | None) -> None:
        """One seed's share of a part, with what happened to it since the round began; or why there is none, where that
        is worth telling."""
        awaited = self._awaited(part.round, part.number)
        if awaited is None or position not in awaited.wanted:
            return
        if found is None or isinstance(found, str):
            if found is not None:
                self._failed(part.round, found)
            self._give_up(part, awaited)
            return
        state, account = found
        if awaited.steps is not None and not awaited.steps[0] <= state.step <= awaited.steps[1]:
            # A process that makes up for rounds before this one: a later run would begin it with another consensus.
            self._give_up(part, awaited)
            return
        assert awaited.facts is not None
        history = [*awaited.facts["history"], *rows(part.round, account)]
        awaited.facts = {**awaited.facts, "history": history}
        awaited.states[position] = state
        self._write_when_complete()

    def _give_up(self, part: Part, awaited: AwaitedRound) -> None:
        self._drop_given_up()
        self._given_up = part
        self._rounds.remove(awaited)
        self._write_when_complete()

    def _drop_given_up(self) -> None:
        """Remove the files of the part that was given up before: by now nobody writes them any more."""
        if self._given_up is not None and self._store is not None:
            part, self._given_up = self._given_up, None
            self._dropping = self._writer.submit(self._store.drop, part.round, part.number)

    # Both.

    def add_progress(self, index: int, progress: Progress) -> None:
        """The coordinator's own part of the round that was begun."""
        current = self._awaited(index)
        if current is not None:
            current.facts, current.tensors = progress.facts(), progress.tensors()
            self._write_when_complete()

    def add_state(self, index: int, position: int, state: StateFile | str) -> None:
        """One seed's part, or why there is none: the round is then given up."""
        current = self._awaited(index)
        if current is None or position not in current.wanted:
            return
        if current.complete:
            return  # told twice: the round goes on its way with what was told first
        if isinstance(state, str):
            self._failed(index, state)
            self._rounds.remove(current)
        else:
            current.states[position] = state
        self._write_when_complete()

    def lost(self, position: int) -> None:
        """A seed that takes part no more: its states are not waited for, and the rounds are whole without it."""
        for current in [round for round in self._rounds if not round.complete]:
            current.wanted -= {position}
            current.states.pop(position, None)
            if not current.wanted:
                self._rounds.remove(current)  # nobody is left who could make it whole
        self._write_when_complete()

    def _write_when_complete(self) -> None:
        current, store = self._rounds[0] if self._rounds else None, self._store
        # One at a time: states of the round before are removed with the next one, and until this one is known to be
        # whole, a process that is lost begins from them.
        if current is None or store is None or self._written is not None or not current.complete:
            return
        states = {self._seeds[position]: state for position, state in current.states.items()}
        facts, tensors = current.facts, current.tensors
        assert facts is not None
        self._written = current, self._writer.submit(store.commit, current.index, states, facts, tensors, current.part)
        self._rounds.remove(current)

    def poll(self, wait: bool = False) -> tuple[int, dict[int, StateFile]]:
        """A round that became whole since the last call and its states by position; no states when none did, or when
        it was a part of one.

        Raises:
            FencedError: Another coordinator owns the run.
        """
        if self._written is None or not (wait or self._written[1].done()):
            return -1, {}
        (current, written), self._written = self._written, None
        try:
            written.result()
        except FencedError:
            raise
        except (CheckpointError, StorageError) as error:
            self._failed(current.index, str(error))
            current.states.clear()
        else:
            if current.part is None:
                self.newest = current.index
            if self._failing:
                self._failing = False
                self._note(EventKind.CHECKPOINT_SAVED_AGAIN, "Checkpoints are saved again.", round=current.index)
        self._write_when_complete()
        return current.index, current.states if current.part is None else {}

    def _failed(self, index: int, reason: str) -> None:
        if self._failing:
            return  # told once; the reason names another file each time
        self._failing = True
        text = f"A round was not saved: {reason}; the last good checkpoint stays, and the run goes on."
        self._note(EventKind.CHECKPOINT_FAILED, text, level=Level.WARNING, round=index)

    def _hears(self, trouble: str | None) -> None:
        """From any thread: an operation on the storage has failed for some seconds, or one succeeded after that."""
        if trouble is None:
            self._note(EventKind.STORAGE_WORKING, "An operation on the storage succeeded again.")
        else:
            assert self._storage is not None
            text = f"The storage fails: {trouble} It is tried again for up to {self._storage.patience:g} s."
            self._note(EventKind.STORAGE_FAILING, text, level=Level.WARNING)

    def write_curves(self, progress: Progress, wait: bool = False) -> None:
        """``metrics.jsonl`` and ``events.jsonl``; skipped while the last ones are being written."""
        if self._storage is None or (self._curves is not None and not self._curves.done() and not wait):
            return
        self._curves = self._writer.submit(self._write_curves, list(progress.history), progress.events.lines())
        if wait:
            self._curves.result()

    def _write_curves(self, history: list[dict[str, float]], events: str) -> None:
        assert self._storage is not None
        try:
            self._storage.write(METRICS_FILE, "".join(map(_line, history)).encode())
            self._storage.write(EVENTS_FILE, events.encode())
        except StorageError as error:
            self._note(EventKind.CHECKPOINT_FAILED, f"The loss curves were not saved: {error}", level=Level.WARNING)

    def close(self, seconds: float = _CLOSE_SECONDS) -> None:
        """Wait for what is being written, at most for so long: a storage that hangs keeps no run from ending."""
        written = self._written[1] if self._written is not None else None
        under_way = (written, self._curves, self._dropping)
        _, late = wait([write for write in under_way if write is not None], seconds)
        if late:
            text = f"The storage did not answer within {seconds:g} s at the end; what was being written may be missing."
            self._note(EventKind.CHECKPOINT_FAILED, text, level=Level.ERROR)
        else:
            with contextlib.suppress(CheckpointError, StorageError):
                self.poll(wait=True)
        self._writer.shutdown(wait=not late, cancel_futures=True)


def _line(row: dict[str, float]) -> str:
    """A row of ``metrics.jsonl``, as ``metrics.schema.json`` has it: JSON has no number that is not finite."""
    numbers = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps({"schema_version": METRICS_VERSION} | numbers, allow_nan=False) + "\n"

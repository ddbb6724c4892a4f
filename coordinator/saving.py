"""Checkpoints on the way: each is completed while the next round runs, one after the other."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..storage.folders import Storage, StorageError
from ..storage.tensor_file import CheckpointError, StateFile
from .checkpoints import CheckpointStore, FencedError
from .events import EventKind, Level
from .progress import Progress

METRICS_FILE = "metrics.jsonl"
METRICS_VERSION = 1
"""Of its lines; it rises when a key changes its meaning or goes, not when one is added."""
EVENTS_FILE = "events.jsonl"
# Rounds whose states are awaited: those of one are written while the next one runs, at whose end its own are due.
_MOST_AWAITED = 2
# A storage that fails is tried again for less; this is for one that does not answer at all.
_CLOSE_SECONDS = 180.0


@dataclass
class _Round:
    """A round that is being saved: complete when every seed's state and the coordinator's own part are there."""

    index: int
    wanted: frozenset[int]
    states: dict[int, StateFile] = field(default_factory=dict)
    facts: Mapping[str, Any] | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.facts is not None and self.states.keys() == self.wanted


class Saving:
    """Brings rounds into the storage without keeping the rounds waiting.

    A round is skipped while the states of two before it are still being written: a slow storage makes checkpoints
    rarer, never the attack slower. What fails is said, and tried again with the next round.

    Args:
        store: Where checkpoints go, or None to keep none.
        storage: Of the run, for its curves and events.
        seeds: By position.
        note: `EventLog.note`.
    """

    def __init__(
        self, store: CheckpointStore | None, storage: Storage | None, seeds: tuple[int, ...], note: Callable[..., None]
    ) -> None:
        self._store, self._storage, self._seeds, self._note = store, storage, seeds, note
        self._rounds: list[_Round] = []
        """Those of which parts are still awaited, or the one before is; the oldest first."""
        self._written: tuple[_Round, Future[None]] | None = None
        """Whole, and on its way."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._failing = False
        self._curves: Future[None] | None = None
        self.newest = -1
        """The newest whole round."""

    @property
    def free(self) -> bool:
        """Whether the next round can be saved."""
        return self._store is not None and len(self._rounds) < _MOST_AWAITED

    @property
    def pending(self) -> bool:
        """Whether anything is on its way."""
        return bool(self._rounds) or self._written is not None

    def begin(self, index: int, positions: Iterable[int]) -> None:
        """A round whose seeds at these positions save their states."""
        assert self.free
        self._rounds.append(_Round(index, frozenset(positions)))

    def _awaited(self, index: int) -> _Round | None:
        return next((round for round in self._rounds if round.index == index), None)

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
        self._written = current, self._writer.submit(store.commit, current.index, states, facts, tensors)
        self._rounds.remove(current)

    def poll(self, wait: bool = False) -> tuple[int, dict[int, StateFile]]:
        """A round that became whole since the last call and its states by position; no states when none did.

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
            self.newest = current.index
            if self._failing:
                self._failing = False
                self._note(EventKind.CHECKPOINT_SAVED_AGAIN, "Checkpoints are saved again.", round=current.index)
        self._write_when_complete()
        return current.index, current.states

    def _failed(self, index: int, reason: str) -> None:
        if self._failing:
            return  # told once; the reason names another file each time
        self._failing = True
        text = f"A round was not saved: {reason}; the last good checkpoint stays, and the run goes on."
        self._note(EventKind.CHECKPOINT_FAILED, text, level=Level.WARNING, round=index)

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
        _, late = wait([write for write in (written, self._curves) if write is not None], seconds)
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

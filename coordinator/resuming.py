"""What a run continues from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..storage.folders import Storage
from .checkpoints import Checkpoint, CheckpointStore, require_no_saved_run
from .events import EventKind, Level
from .policy import Round
from .result_file import remove_result


class Note(Protocol):
    """Takes down what a person should know."""

    def __call__(self, kind: EventKind, text: str, *, level: Level = Level.INFO) -> None:
        """See `EventLog.note`."""


def find_checkpoint(
    store: CheckpointStore | None, storage: Storage | None, resume: bool, restart: bool, note: Note
) -> Checkpoint | None:
    """The newest checkpoint of the run; None where it begins anew, in a folder without an earlier run.

    Args:
        store: Of the checkpoints, or None where nothing is kept.
        storage: Of the run.
        resume: Whether it is to be continued.
        restart: Whether an earlier run in the folder may be cleared.
        note: Told which checkpoints were passed over.

    Raises:
        CheckpointError: The newest checkpoint is of another run, or there is an earlier run that nobody said may be
            cleared.
    """
    if store is None or storage is None:
        return None
    if not resume:
        if not restart:
            require_no_saved_run(storage)
        store.clear()
        remove_result(storage)
        return None
    checkpoint, messages = store.latest()
    for text in messages:
        note(EventKind.CHECKPOINT_REFUSED, text, level=Level.WARNING)
    if checkpoint is None:
        note(EventKind.NOTE, "There was no checkpoint to continue from, so the run began anew.")
    return checkpoint


def continuation(checkpoint: Checkpoint, plan: Sequence[Round]) -> str:
    """What a person reads of where the run goes on."""
    slowest = min((state.step for state in checkpoint.states.values()), default=0)
    whole = plan[checkpoint.round].until_step if checkpoint.round >= 0 else 0
    within = f", from step {slowest} on" if slowest > whole else ""
    return f"Continued after round {checkpoint.round + 1} of {len(plan)}{within}."

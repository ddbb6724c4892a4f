"""One folder per checkpoint: of a round that has ended, or of a part of one that is under way. The manifest is written
last, so a folder with a good manifest is whole.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..storage.folders import Storage, StorageError
from ..storage.tensor_file import (
    CheckpointError,
    StateFile,
    TornError,
    read_tensors,
    require_content,
    require_size,
    write_tensors,
)
from .manifest import FORMAT, TENSORS, parse_files, read_manifest

_KEPT_ROUNDS = 2
_FOLDER = "checkpoints"
_OWNER = f"{_FOLDER}/owner.json"
_MANIFEST = "manifest.json"
_ROUND = re.compile(r"round-(\d{6,})(?:-part-(\d{6,}))?")
_WRITER = re.compile(r"[A-Za-z0-9_-]{1,80}")
RESULT_FILE = "result.json"
"""Beside the rounds, once a run has ended."""
# Checksums are bound by the disk or the network, not by Python.
_READERS = 4


class FencedError(CheckpointError):
    """Another coordinator has taken the run over; this one must end."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run continues from."""

    round: int
    """The last one that has ended, or -1. Seeds may stand further on, within the next one."""
    progress: dict[str, Any]
    states: dict[int, StateFile]
    """By seed; a seed without a state took no part."""
    tensors: dict[str, Tensor]


def state_name(index: int, seed: int, writer: str, part: int | None = None) -> str:
    """Where a seed's state lies.

    Args:
        index: The round.
        seed: The seed.
        writer: Made up anew by each process that writes: one that was thought dead and writes late does not overwrite
            the file of its successor, and the manifest says whose file counts.
        part: Number of the checkpoint within the round, larger for later ones; None for that of its end.
    """
    if not _WRITER.fullmatch(writer):
        raise ValueError(f"writer={writer!r}: give up to 80 letters, digits, '-' and '_'.")
    return f"{_folder(index, part)}/seed-{seed}.{writer}.safetensors"


def require_no_saved_run(storage: Storage) -> None:
    """Refuse a folder in which lies what took work.

    Raises:
        CheckpointError: It holds checkpoints, or a result; the sentence tells the ways on.
        StorageError: It cannot be listed now.
    """
    names = storage.names(_FOLDER)
    saved = sum(_ROUND.fullmatch(name) is not None for name in names)
    if not saved and RESULT_FILE not in names:
        return
    held = "the result of a run" if RESULT_FILE in names else f"a run with {saved} saved rounds"
    raise CheckpointError(
        f"{storage.url} holds {held}: resume=true goes on with it, restart=true deletes it and begins anew; or give "
        "another out folder."
    )


class CheckpointStore:
    """The rounds of one run.

    Args:
        storage: The run's folder; the rounds lie in ``checkpoints/round-000000`` and so on.
        identity: What a run must have in common with a checkpoint to continue it, as flat plain values.
    """

    def __init__(self, storage: Storage, identity: Mapping[str, Any]) -> None:
        self._storage = storage
        self._identity = json.loads(json.dumps(dict(identity)))
        self._owner: dict[str, Any] | None = None
        self._begun: tuple[int, int | None] | None = None
        """What the run continues from, and lost processes too until the states of a whole round are there."""
        self._whole: int | None = None
        """The last one committed here."""

    def claim(self) -> int:
        """Make this coordinator the owner of the run; returns its epoch, one more than that of the owner before.

        Raises:
            StorageError: The owner's file cannot be read or written.
        """
        before = self._read_owner()
        owner = {"epoch": 1 if before is None else before["epoch"] + 1, "token": secrets.token_hex(16)}
        self._storage.write(_OWNER, json.dumps(owner).encode())
        self._owner = owner
        return int(owner["epoch"])

    def clear(self) -> None:
        """Remove all rounds, for a run that begins anew in the same folder; who owns it stays known."""
        for index, part in self._saved():
            self._storage.remove(_folder(index, part))

    def drop(self, index: int, part: int) -> None:
        """Remove what was written for a part that never became whole."""
        with contextlib.suppress(StorageError):
            self._storage.remove(_folder(index, part))

    def settle(self) -> None:
        """Nothing begins any more from what the run continued from, if a round has ended since: it may go."""
        if self._whole is not None:
            with contextlib.suppress(StorageError):
                self._drop_before(self._whole, None)

    def commit(
        self,
        index: int,
        files: Mapping[int, StateFile],
        progress: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        part: int | None = None,
    ) -> None:
        """Make a checkpoint whole by writing its manifest, then drop rounds beyond the last two, and earlier parts.
        ``claim`` goes before.

        Args:
            index: The round.
            files: The state of each seed that takes part, under its ``state_name`` in this checkpoint.
            progress: What else a coordinator needs to go on, as plain values; of a part, as the round began.
            tensors: And what of that is tensors; may be empty.
            part: See `state_name`.

        Raises:
            FencedError: Another coordinator claimed the run since.
            StorageError: The round cannot be written; those before it stay.
        """
        folder = _folder(index, part)
        wrong = [file.name for file in files.values() if file.name.rpartition("/")[0] != folder]
        assert not wrong, f"not in {folder}: {wrong}"
        self._require_ownership()
        entries = {Path(file.name).name: _entry(file) | {"seed": seed} for seed, file in files.items()}
        if tensors:
            entries[TENSORS] = _entry(write_tensors(self._storage, f"{folder}/{TENSORS}", tensors))
        manifest = {
            "format": FORMAT,
            "round": index,
            "identity": self._identity,
            "files": entries,
            "progress": dict(progress),
        }
        self._storage.write(f"{folder}/{_MANIFEST}", json.dumps(manifest).encode())
        # It is saved; what could not be removed is removed after the next one.
        with contextlib.suppress(StorageError):
            self._drop_before(index, part)
        if part is None:
            self._whole = index

    def latest(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """The newest whole checkpoint, and a message for each newer one that is torn.

        Raises:
            CheckpointError: The newest whole checkpoint belongs to another run (every difference is named), an older
                version wrote it, or its manifest would take too much memory.
            StorageError: The storage cannot be read now.
        """
        messages: list[str] = []
        unreadable: StorageError | None = None
        for index, part in self._saved():
            manifest = f"{_folder(index, part)}/{_MANIFEST}"
            try:
                if not self._storage.exists(manifest):
                    where = self._storage.locate(manifest)
                    messages.append(f"Passed over an unfinished checkpoint: there is no {where}")
                    continue
                found = self._open(index, part)
                self._begun = index, part
                return found, tuple(messages)
            except TornError as error:
                messages.append(f"Skipped a torn checkpoint: {error}")
            except CheckpointError:
                raise
            except StorageError as error:
                messages.append(f"Skipped a checkpoint that cannot be read: {error}")
                unreadable = error
        if unreadable is not None:
            # Beginning anew would throw away what is there and may be read tomorrow.
            raise unreadable
        return None, tuple(messages)

    def _open(self, index: int, part: int | None) -> Checkpoint:
        folder = _folder(index, part)
        where = self._storage.locate(f"{folder}/{_MANIFEST}")
        manifest = read_manifest(self._storage, f"{folder}/{_MANIFEST}")
        if manifest.get("format") == 1:
            raise CheckpointError(
                f"{where} was written by an older version of gradinversion (format 1, this one reads {FORMAT}); "
                "finish the run with that version, or give another out folder."
            )
        states, tensors_file = parse_files(where, folder, index, manifest)
        self._require_same_run(folder, manifest["identity"])
        files = [*states.values(), *([tensors_file] if tensors_file else [])]
        with ThreadPoolExecutor(_READERS) as pool:
            # Sizes first: they cost next to nothing and show most damage.
            for check in (require_size, require_content):
                list(pool.map(check, [self._storage] * len(files), files))
        tensors = {} if tensors_file is None else read_tensors(self._storage, tensors_file)
        return Checkpoint(index if part is None else index - 1, manifest["progress"], states, tensors)

    def _saved(self) -> list[tuple[int, int | None]]:
        """Round and part of all checkpoints of which there is anything, the newest first."""
        matches = [_ROUND.fullmatch(name) for name in self._storage.names(_FOLDER)]
        found = [(int(match[1]), None if match[2] is None else int(match[2])) for match in matches if match]
        return sorted(found, key=_moment, reverse=True)

    def _drop_before(self, index: int, part: int | None) -> None:
        """Remove what this checkpoint makes worthless: rounds older than the last two whole ones, what lies between
        without a manifest, and earlier parts."""
        kept = 1
        # A part that the run continued from stays until a second round ends: lost processes begin from the first then.
        needed = self._begun if part is not None or self._whole is None else None
        for older in self._saved():
            if _moment(older) >= _moment((index, part)):  # this one, and those that are being written
                continue
            of_a_round = older[1] is None
            if (part is not None) if of_a_round else (older == needed):
                continue
            if of_a_round and kept < _KEPT_ROUNDS and self._storage.exists(f"{_folder(*older)}/{_MANIFEST}"):
                kept += 1
            else:
                self._storage.remove(_folder(*older))

    def _require_ownership(self) -> None:
        assert self._owner is not None, "claim() goes before commit()"
        owner = self._read_owner()
        if owner is None:  # someone emptied the folder: nobody else has claimed it
            self._storage.write(_OWNER, json.dumps(self._owner).encode())
        elif owner != self._owner:
            raise FencedError(
                f"{self._storage.url} was taken over by another coordinator (epoch {owner['epoch']}, this one has "
                f"{self._owner['epoch']}), which continues the run; this one ends."
            )

    def _read_owner(self) -> dict[str, Any] | None:
        where = self._storage.locate(_OWNER)
        if not self._storage.exists(_OWNER):
            return None
        owner = read_manifest(self._storage, _OWNER)
        if type(owner.get("epoch")) is not int or not isinstance(owner.get("token"), str):
            raise CheckpointError(f"{where} does not say who owns the run; remove it if no run uses this folder.")
        return {"epoch": owner["epoch"], "token": owner["token"]}

    def _require_same_run(self, folder: str, found: dict[str, Any]) -> None:
        if found == self._identity:
            return
        lines = [
            f"\n  - {name}: {found.get(name)!r} there, {self._identity.get(name)!r} now"
            for name in sorted(set(self._identity) | set(found))
            if found.get(name) != self._identity.get(name)
        ]
        raise CheckpointError(
            f"{self._storage.locate(folder)} is a checkpoint of another run; give that run's settings, or another out "
            f"folder:{''.join(lines)}"
        )


def _moment(saved: tuple[int, int | None]) -> tuple[int, float]:
    """By which checkpoints follow each other: the end of a round comes after all its parts."""
    index, part = saved
    return index, float("inf") if part is None else part


def _folder(index: int, part: int | None = None) -> str:
    within = "" if part is None else f"-part-{part:06d}"
    return f"{_FOLDER}/round-{index:06d}{within}"


def _entry(file: StateFile) -> dict[str, Any]:
    return {"sha256": file.sha256, "size": file.size, "step": file.step}

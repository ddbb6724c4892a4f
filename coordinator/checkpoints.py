"""One folder per finished round; the manifest is written last, so a folder with a good manifest is a whole round."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

_FORMAT = 1
_KEPT_ROUNDS = 2
_MANIFEST = "manifest.json"
_LARGEST_JSON = 256 * 2**20


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or cannot be continued from."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole round on disk."""

    folder: Path
    round: int
    progress: dict[str, Any]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file atomically; returns its SHA-256."""
    return write_file(path, safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of a checkpoint.

    Raises:
        CheckpointError: It is missing, torn or of another format.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from None


def write_file(path: Path, content: bytes) -> str:
    """Write a file atomically, flushed to the disk; returns its SHA-256."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from None
    return hashlib.sha256(content).hexdigest()


class CheckpointStore:
    """The rounds of one run.

    Args:
        folder: Where the rounds' folders lie; made when the first round is saved.
        identity: What a run must have in common with a checkpoint to continue it, as flat plain values.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder = folder
        self._identity = json.loads(json.dumps(dict(identity)))

    def prepare(self, index: int) -> Path:
        """An empty folder for a round's files."""
        folder = self._folder / f"round-{index:06d}"
        try:
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be made: {error.strerror or error}") from None
        return folder

    def commit(self, folder: Path, index: int, files: Mapping[str, str], progress: Mapping[str, Any]) -> None:
        """Make a round whole by writing its manifest, then drop rounds beyond the last two."""
        manifest = {
            "format": _FORMAT,
            "round": index,
            "identity": self._identity,
            "files": dict(files),
            "progress": dict(progress),
        }
        write_file(folder / _MANIFEST, json.dumps(manifest).encode())
        for old in self._rounds()[_KEPT_ROUNDS:]:
            shutil.rmtree(old, ignore_errors=True)

    def _rounds(self) -> list[Path]:
        return sorted(self._folder.glob("round-*"), reverse=True)

    def latest(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """The newest whole round, and a message for each newer one that is torn.

        Raises:
            CheckpointError: The newest whole round belongs to another run; every difference is named.
        """
        messages: list[str] = []
        for folder in self._rounds():
            try:
                manifest = self._read_manifest(folder)
            except CheckpointError as error:
                messages.append(f"Skipped a torn checkpoint: {error}")
                continue
            self._require_same_run(folder, manifest["identity"])
            return Checkpoint(folder, int(manifest["round"]), manifest["progress"]), tuple(messages)
        return None, tuple(messages)

    def _read_manifest(self, folder: Path) -> dict[str, Any]:
        path = folder / _MANIFEST
        try:
            if path.stat().st_size > _LARGEST_JSON:
                raise CheckpointError(f"{path} is larger than {_LARGEST_JSON} bytes")
            manifest = json.loads(path.read_bytes())
            files, wanted = manifest["files"], {"format", "round", "identity", "progress"}
            if manifest["format"] != _FORMAT or not wanted <= manifest.keys() or not isinstance(files, dict):
                raise CheckpointError(f"{path} is not a manifest of format {_FORMAT}")
            for name, digest in files.items():
                if Path(name).name != name:
                    raise CheckpointError(f"{path} names a file outside its folder: {name!r}")
                if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                    raise CheckpointError(f"{folder / name} differs from its checksum")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        assert isinstance(manifest, dict)
        return manifest

    def _require_same_run(self, folder: Path, found: Any) -> None:
        if found == self._identity:
            return
        names = sorted(set(self._identity) | set(found if isinstance(found, dict) else ()))
        lines = [
            f"\n  - {name}: {found.get(name)!r} there, {self._identity.get(name)!r} now"
            for name in names
            if isinstance(found, dict) and found.get(name) != self._identity.get(name)
        ]
        raise CheckpointError(
            f"{folder} is a checkpoint of another run; give that run's settings, or another out folder:{''.join(lines)}"
        )

"""One safetensors file: written whole or not at all, and read as the file of a stranger."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .folders import AbsentError, Storage, StorageError
from .safetensors_reader import FormatError, read_safetensors

LARGEST_TENSORS = 16 * 2**30


class CheckpointError(StorageError):
    """A checkpoint cannot be continued from."""


class TornError(CheckpointError):
    """A file is missing, damaged or no part of a checkpoint."""


@dataclass(frozen=True)
class StateFile:
    """A file of tensors as it was written."""

    name: str
    """Relative to the storage."""
    sha256: str
    size: int
    """Bytes."""
    step: int = 0
    """Of the seed whose state it is."""


def write_tensors(storage: Storage, name: str, tensors: Mapping[str, Tensor]) -> StateFile:
    """Write tensors, on whatever device, as a safetensors file: whole or not at all.

    Raises:
        StorageError: It cannot be written; an older file of that name is still whole.
    """
    packed = _without_sharing(tensors)
    if not storage.is_local:
        content = safetensors.torch.save(packed)
        return StateFile(name, storage.write(name, content), len(content))
    # Straight from the tensors' memory, while other threads may run: `save` would hold them up.
    storage.write_file(name, lambda path: _save(packed, path))
    return StateFile(name, storage.digest(name), storage.size(name))


def write_state(storage: Storage, name: str, state: Mapping[str, Tensor], step: int) -> StateFile:
    """Write a seed's state after ``step`` steps under its ``state_name``; see ``write_tensors``."""
    return replace(write_tensors(storage, name, state), step=step)


def read_tensors(storage: Storage, file: StateFile | str, largest: int = LARGEST_TENSORS) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        storage: Where from.
        file: As it was written, or its name alone, and then no checksum is asked for.
        largest: Bytes; a larger file is refused unread.

    Raises:
        CheckpointError: It is missing, torn or of another format.
        StorageError: It is too large, or cannot be read now.
    """
    name = file if isinstance(file, str) else file.name
    if isinstance(file, StateFile):
        require_size(storage, file)
    content = read_file(storage, name, largest)
    if isinstance(file, StateFile) and hashlib.sha256(content).hexdigest() != file.sha256:
        raise TornError(f"{storage.locate(name)} differs from its checksum")
    try:
        return read_safetensors(io.BytesIO(content), len(content))[1]
    except FormatError as error:
        raise TornError(f"{storage.locate(name)} cannot be read as a checkpoint: {error}") from None


def require_size(storage: Storage, file: StateFile) -> None:
    try:
        size = storage.size(file.name)
    except AbsentError as error:
        raise TornError(str(error)) from error
    if size != file.size:
        raise TornError(f"{storage.locate(file.name)} has {size:,} bytes instead of {file.size:,}")


def require_content(storage: Storage, file: StateFile) -> None:
    if storage.digest(file.name) != file.sha256:
        raise TornError(f"{storage.locate(file.name)} differs from its checksum")


def read_file(storage: Storage, name: str, largest: int) -> bytes:
    try:
        return storage.read(name, largest)
    except AbsentError as error:
        raise TornError(str(error)) from error


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file(tensors, path)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error))
        if code is None:
            raise
        number = int(code[1] or code[2])  # as safetensors since 0.5.3 says it, and as it did before
        raise OSError(number, os.strerror(number)) from error


def _without_sharing(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, each with memory of its own: safetensors takes no others."""
    taken: set[int] = set()
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        address = tensor.untyped_storage().data_ptr()
        packed[name] = tensor.clone() if address in taken else tensor
        taken.add(address)
    return packed

"""The file of a captured update: safetensors, with the facts as one JSON string in its metadata.

The file may come from a stranger, see `read_safetensors`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..storage.atomic import place_files
from ..storage.safetensors_reader import (
    LARGEST_FILE_BYTES,
    Entry,
    FormatError,
    parse_json,
    read_safetensors,
    short,
)
from .counters import is_counter
from .errors import UpdateError
from .facts import ClientFacts
from .facts_file import read_facts, read_old_facts, refuse, text, write_facts
from .update_kind import UpdateKind

FORMAT_KEY = "gradinversion"
FORMAT_VERSION = 2
_VERSIONS = (1, 2)
_TYPES = ("F64", "F32", "F16", "BF16")

_Update = TypeVar("_Update")


class Writable(Protocol):
    """An update, as far as its file holds it."""

    @property
    def gradients(self) -> dict[str, Tensor]: ...
    @property
    def buffers(self) -> dict[str, Tensor] | None: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def model_id(self) -> str: ...
    @property
    def weight_hash(self) -> str: ...
    @property
    def kind(self) -> UpdateKind: ...
    @property
    def facts(self) -> ClientFacts: ...


def write_update(update: Writable, path: str | os.PathLike[str]) -> None:
    """Write the update; a reader sees the old file or the whole new one.

    Raises:
        UpdateError: The file cannot be written; an older file of that name is still whole.
    """
    target = Path(path)
    # Copies: safetensors refuses tensors that share memory.
    tensors = {f"gradient/{name}": g.detach().cpu().contiguous().clone() for name, g in update.gradients.items()}
    for name, buffer in (update.buffers or {}).items():
        tensors[f"buffer/{name}"] = buffer.detach().cpu().contiguous().clone()
    metadata = {FORMAT_KEY: json.dumps(_facts(update))}
    try:
        place_files({target: lambda beside: safetensors.torch.save_file(tensors, beside, metadata=metadata)})
    except (OSError, safetensors.SafetensorError) as error:
        raise UpdateError(
            f"the update cannot be written to {str(target)!r} ({error}); give a folder that exists, is writable and "
            "has space left"
        ) from error


def read_update(
    path: str | os.PathLike[str], make: Callable[..., _Update], largest_bytes: int = LARGEST_FILE_BYTES
) -> _Update:
    """The update in the file.

    Args:
        path: A file that ``write_update`` made, or anything else.
        make: Makes the update of its fields, which are given by name, and checks them.
        largest_bytes: Larger files are refused unread.

    Raises:
        UpdateError: One sentence that names the file.
    """
    name = str(Path(path))
    try:
        if not Path(path).is_file():
            refuse("does not exist" if not Path(path).exists() else "is not a file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > largest_bytes:
                refuse(f"has {size:,} bytes; at most {largest_bytes:,} are read")
            metadata, tensors = read_safetensors(file, size, _check_entry)
        return make(**_fields(_parse_metadata(metadata), tensors))
    except (UpdateError, FormatError) as error:
        raise UpdateError(f"the update file {name!r} cannot be used: {error}") from None
    except (OSError, ValueError) as error:
        raise UpdateError(f"the update file {name!r} cannot be read ({error})") from error


def _facts(update: Writable) -> dict[str, Any]:
    return {
        "version": FORMAT_VERSION,
        "image_shape": list(update.image_shape),
        "model_id": update.model_id,
        "weight_hash": update.weight_hash,
        "buffers": update.buffers is not None,
        "kind": str(update.kind),
        "facts": write_facts(update.facts),
    }


def _parse_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    text = metadata.get(FORMAT_KEY)
    if not isinstance(text, str):
        refuse(f"it is safetensors without the metadata entry {FORMAT_KEY!r}; write it with CapturedUpdate.save")
    facts = parse_json(text, "its metadata")
    version = facts.get("version")
    if type(version) is not int or version not in _VERSIONS:
        refuse(
            f"its format version is {short(version)} and this program reads versions 1 to {FORMAT_VERSION}; "
            "update gradinversion or capture again"
        )
    return facts


def _check_entry(key: str, entry: Entry) -> None:
    """Refuse what no tensor of an update has."""
    counts_steps = key.startswith("buffer/") and is_counter(key.removeprefix("buffer/"))
    if entry.code not in _TYPES and not (counts_steps and entry.dtype is torch.int64):
        refuse(f"tensor {short(key)} has type {short(entry.code)}; allowed are F64, F32, F16 and BF16")
    # A counter may be anything: what is no count is left out of the update.
    if 0 in entry.shape and not counts_steps:
        refuse(f"tensor {short(key)} has shape {short(list(entry.shape))}; it must be a list of up to 8 positive sizes")


def _fields(facts: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Those of ``Writable``."""
    groups: dict[str, dict[str, Tensor]] = {"gradient": {}, "buffer": {}}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        if group not in groups or not name:
            refuse(f"tensor {short(key)} is neither gradient/NAME nor buffer/NAME")
        groups[group][name] = tensor
    shape = facts.get("image_shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(side) is int for side in shape):
        refuse(f"its image_shape is {short(shape)}; it must be three whole numbers")
    if type(facts.get("buffers")) is not bool:
        refuse(f"its entry buffers is {short(facts.get('buffers'))}; it must be true or false")
    kind = facts.get("kind")
    if not isinstance(kind, str) or kind not in list(UpdateKind):
        refuse(f"its kind is {short(kind)}; it must be one of {', '.join(UpdateKind)}")
    return {
        "gradients": groups["gradient"],
        "image_shape": (shape[0], shape[1], shape[2]),
        "model_id": text("model_id", facts.get("model_id")),
        "weight_hash": text("weight_hash", facts.get("weight_hash")),
        "facts": read_old_facts(facts) if facts["version"] == 1 else read_facts(facts.get("facts")),
        "buffers": groups["buffer"] if facts["buffers"] or groups["buffer"] else None,
        "kind": UpdateKind(kind),
    }

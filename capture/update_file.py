"""The file of a captured update: safetensors, with the facts as one JSON string in its metadata.

Layout of safetensors: 8 bytes with the header's length (little endian), the header as JSON, then the tensors' bytes
without gaps. The file may come from a stranger, so it is read here step by step: nothing is allocated before the length
that asks for it has been held against the file's size.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..storage.atomic import place_files
from .counters import is_counter
from .errors import UpdateError
from .facts import ClientFacts
from .facts_file import read_facts, read_old_facts, refuse, short, text, write_facts
from .update_kind import UpdateKind

FORMAT_KEY = "gradinversion"
FORMAT_VERSION = 2
_VERSIONS = (1, 2)
LARGEST_HEADER_BYTES = 16 * 2**20
LARGEST_FILE_BYTES = 16 * 2**30
LARGEST_RANK = 8

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}


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


@dataclass(frozen=True)
class _Entry:
    """Where one tensor lies in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


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
            header, start = _read_header(file, size)
            facts = _parse_metadata(header.pop("__metadata__", None))
            entries = {key: _parse_entry(key, value) for key, value in header.items()}
            _check_layout(entries, size - start)
            tensors = {key: _read_tensor(file, start, entry) for key, entry in entries.items()}
        return make(**_fields(facts, tensors))
    except UpdateError as error:
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


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The parsed header and the position where the tensors begin."""
    if size < 8:
        refuse(f"it has {size} bytes, too few for a safetensors file; it is empty or cut off")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > LARGEST_HEADER_BYTES:
        refuse(f"it declares a header of {length:,} bytes (at most {LARGEST_HEADER_BYTES:,}); it is not safetensors")
    if 8 + length > size:
        refuse(f"its header of {length:,} bytes does not fit into its {size:,} bytes; it is cut off or no safetensors")
    header = _parse_json(file.read(length), "its header")
    return header, 8 + length


def _parse_json(text: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object without repeated keys."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            refuse(f"{what} names an entry twice")
        return parsed

    try:
        parsed = json.loads(text, object_pairs_hook=once)
    except UpdateError:
        raise
    # ValueError covers syntax, encoding and absurdly long numbers; RecursionError absurd nesting.
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        refuse(f"{what} is not a JSON object; it is damaged or not safetensors")
    return parsed


def _parse_metadata(metadata: object) -> dict[str, Any]:
    text = metadata.get(FORMAT_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        refuse(f"it is safetensors without the metadata entry {FORMAT_KEY!r}; write it with CapturedUpdate.save")
    facts = _parse_json(text, "its metadata")
    version = facts.get("version")
    if type(version) is not int or version not in _VERSIONS:
        refuse(
            f"its format version is {short(version)} and this program reads versions 1 to {FORMAT_VERSION}; "
            "update gradinversion or capture again"
        )
    return facts


def _parse_entry(key: str, value: object) -> _Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        refuse(f"the entry {short(key)} of its header is malformed")
    shape, offsets, code = value["shape"], value["data_offsets"], value["dtype"]
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    counts_steps = key.startswith("buffer/") and is_counter(key.removeprefix("buffer/"))
    if dtype is None or (dtype is torch.int64 and not counts_steps):
        refuse(f"tensor {short(key)} has type {short(code)}; allowed are F64, F32, F16 and BF16")
    # A counter may be anything: what is no count is left out of the update.
    if not _are_counts(shape) or len(shape) > LARGEST_RANK or (0 in shape and not counts_steps):
        refuse(f"tensor {short(key)} has shape {short(shape)}; it must be a list of up to 8 positive sizes")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(f"tensor {short(key)} has data offsets {short(offsets)}; they must be two rising positions")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        refuse(f"tensor {short(key)} of shape {short(shape)} does not fit its {end - begin:,} bytes")
    return _Entry(dtype, tuple(shape), begin, end)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= LARGEST_FILE_BYTES for item in value)


def _check_layout(entries: dict[str, _Entry], available: int) -> None:
    """The tensors must fill the rest of the file exactly, without overlap."""
    position = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.begin):
        if entry.begin != position:
            refuse("its tensors overlap or leave gaps; it is damaged")
        position = entry.end
    if position != available:
        refuse(f"its tensors need {position:,} bytes and the file holds {available:,}; it is cut off or damaged")


def _read_tensor(file: BinaryIO, start: int, entry: _Entry) -> Tensor:
    file.seek(start + entry.begin)
    # A bytearray, since the tensor takes over its memory and must be writable.
    content = bytearray(file.read(entry.end - entry.begin))
    if len(content) != entry.end - entry.begin:
        refuse("it became shorter while it was read")
    # An empty buffer is refused by frombuffer.
    flat = torch.frombuffer(content, dtype=entry.dtype) if content else torch.empty(0, dtype=entry.dtype)
    return flat.reshape(entry.shape)


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

"""A safetensors file of a stranger, read step by step: nothing is allocated before the length that asks for it has been
held against the file's size.

Layout: 8 bytes with the header's length (little endian), the header as JSON, then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

from ..foreign_text import safe
from ..refusal import Refusal

LARGEST_HEADER_BYTES = 4 * 2**20
LARGEST_FILE_BYTES = 16 * 2**30
LARGEST_RANK = 8
_LONGEST_SHOWN = 60

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class FormatError(Refusal, ValueError):
    """What is wrong with a file, as the end of a sentence that begins with its name."""


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in the file."""

    dtype: torch.dtype
    code: str
    """The type's name in safetensors."""
    shape: tuple[int, ...]
    begin: int
    end: int


Check = Callable[[str, Entry], object]


def read_safetensors_file(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file on a disk.

    Raises:
        FormatError: It is damaged, too large, or holds types that are not read.
        OSError: It cannot be read.
    """
    if not Path(path).is_file():
        wrong("it is no regular file")
    with open(path, "rb") as file:
        return read_safetensors(file, os.fstat(file.fileno()).st_size)[1]


def read_safetensors(file: BinaryIO, size: int, check: Check | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and the tensors.

    Args:
        file: At its beginning.
        size: Its bytes.
        check: Called with the name and the entry of each tensor before any of them is read; it may raise.

    Raises:
        FormatError: What is wrong.
    """
    header, start = _read_header(file, size)
    metadata = header.pop("__metadata__", None)
    entries = {key: _parse_entry(key, value) for key, value in header.items()}
    if check is not None:
        for key, entry in entries.items():
            check(key, entry)
    _check_layout(entries, size - start)
    tensors = {key: _read_tensor(file, start, entry) for key, entry in entries.items()}
    return metadata if isinstance(metadata, dict) else {}, tensors


def wrong(reason: str) -> NoReturn:
    """Raise FormatError for this reason."""
    raise FormatError(reason)


def short(value: object) -> str:
    """For an error message: a stranger's value may be long or hold control characters."""
    if type(value) is int and value.bit_length() > 200:
        return "a huge number"
    try:
        return safe(repr(value), _LONGEST_SHOWN)
    except (ValueError, RecursionError):
        return "something unprintable"


def parse_json(text: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object without repeated keys.

    Raises:
        FormatError: It is none.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            wrong(f"{what} names an entry twice")
        return parsed

    try:
        parsed = json.loads(text, object_pairs_hook=once)
    except FormatError:
        raise
    # ValueError covers syntax, encoding and absurdly long numbers; RecursionError absurd nesting.
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        wrong(f"{what} is not a JSON object; it is damaged or not safetensors")
    return parsed


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The parsed header and the position where the tensors begin."""
    if size < 8:
        wrong(f"it has {size} bytes, too few for a safetensors file; it is empty or cut off")
    if size > LARGEST_FILE_BYTES:
        wrong(f"it has {size:,} bytes; at most {LARGEST_FILE_BYTES:,} are read")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > LARGEST_HEADER_BYTES:
        wrong(f"it declares a header of {length:,} bytes (at most {LARGEST_HEADER_BYTES:,}); it is not safetensors")
    if 8 + length > size:
        wrong(f"its header of {length:,} bytes does not fit into its {size:,} bytes; it is cut off or no safetensors")
    return parse_json(file.read(length), "its header"), 8 + length


def _parse_entry(key: str, value: object) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        wrong(f"the entry {short(key)} of its header is malformed")
    shape, offsets, code = value["shape"], value["data_offsets"], value["dtype"]
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        wrong(f"tensor {short(key)} has type {short(code)}; allowed are {', '.join(_DTYPES)}")
    if not _are_counts(shape) or len(shape) > LARGEST_RANK:
        wrong(f"tensor {short(key)} has shape {short(shape)}; it must be a list of up to 8 positive sizes")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        wrong(f"tensor {short(key)} has data offsets {short(offsets)}; they must be two rising positions")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        wrong(f"tensor {short(key)} of shape {short(shape)} does not fit its {end - begin:,} bytes")
    return Entry(dtype, code, tuple(shape), begin, end)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= LARGEST_FILE_BYTES for item in value)


def _check_layout(entries: dict[str, Entry], available: int) -> None:
    """The tensors must fill the rest of the file exactly, without overlap."""
    position = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            wrong("its tensors overlap or leave gaps; it is damaged")
        position = entry.end
    if position != available:
        wrong(f"its tensors need {position:,} bytes and the file holds {available:,}; it is cut off or damaged")


def _read_tensor(file: BinaryIO, start: int, entry: Entry) -> Tensor:
    file.seek(start + entry.begin)
    # A bytearray, since the tensor takes over its memory and must be writable.
    content = bytearray(file.read(entry.end - entry.begin))
    if len(content) != entry.end - entry.begin:
        wrong("it became shorter while it was read")
    return tensor_of(content, entry.dtype).reshape(entry.shape)


def tensor_of(content: bytearray, dtype: torch.dtype) -> Tensor:
    """The numbers in these bytes, flat; the tensor takes over their memory."""
    # An empty buffer is refused by frombuffer.
    if not content:
        return torch.empty(0, dtype=dtype)
    # A byte that is neither 0 nor 1 makes no bool.
    if dtype is torch.bool:
        return torch.frombuffer(content, dtype=torch.uint8) != 0
    return torch.frombuffer(content, dtype=dtype)

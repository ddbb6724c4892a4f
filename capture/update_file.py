"""The file of a captured update: safetensors, with the facts as one JSON string in its metadata.

Layout of safetensors: 8 bytes with the header's length (little endian), the header as JSON, then the tensors' bytes
without gaps. The file may come from a stranger, so it is read here step by step: nothing is allocated before the length
that asks for it has been held against the file's size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .local_training import LocalTraining
from .update import BatchNormMode, CapturedUpdate, Normalisation, UpdateError, UpdateKind

FORMAT_KEY = "gradinversion"
FORMAT_VERSION = 1
LARGEST_HEADER_BYTES = 16 * 2**20
LARGEST_FILE_BYTES = 16 * 2**30
LARGEST_RANK = 8
LONGEST_TEXT = 500

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}


@dataclass(frozen=True)
class _Entry:
    """Where one tensor lies in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def write_update(update: CapturedUpdate, path: str | os.PathLike[str]) -> None:
    """Write the update beside its final place, flush it to the disk, then move it there in one step.

    Raises:
        UpdateError: The file cannot be written; an older file of that name is still whole.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    # Copies: safetensors refuses tensors that share memory.
    tensors = {f"gradient/{name}": g.detach().cpu().contiguous().clone() for name, g in update.gradients.items()}
    for name, buffer in (update.buffers or {}).items():
        tensors[f"buffer/{name}"] = buffer.detach().cpu().contiguous().clone()
    try:
        safetensors.torch.save_file(tensors, temporary, metadata={FORMAT_KEY: json.dumps(_facts(update))})
        _flush(temporary)
        os.replace(temporary, target)
        _flush(target.parent)
    except (OSError, safetensors.SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UpdateError(
            f"the update cannot be written to {str(target)!r} ({error}); give a folder that exists, is writable and "
            "has space left"
        ) from error


def read_update(path: str | os.PathLike[str], largest_bytes: int = LARGEST_FILE_BYTES) -> CapturedUpdate:
    """The update in the file.

    Args:
        path: A file that ``write_update`` made, or anything else.
        largest_bytes: Larger files are refused unread.

    Raises:
        UpdateError: One sentence that names the file.
    """
    name = str(Path(path))
    try:
        if not Path(path).is_file():
            _refuse("does not exist" if not Path(path).exists() else "is not a file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > largest_bytes:
                _refuse(f"has {size:,} bytes; at most {largest_bytes:,} are read")
            header, start = _read_header(file, size)
            facts = _parse_metadata(header.pop("__metadata__", None))
            entries = {key: _parse_entry(key, value) for key, value in header.items()}
            _check_layout(entries, size - start)
            tensors = {key: _read_tensor(file, start, entry) for key, entry in entries.items()}
        return _assemble(facts, tensors)
    except UpdateError as error:
        raise UpdateError(f"the update file {name!r} cannot be used: {error}") from None
    except (OSError, ValueError) as error:
        raise UpdateError(f"the update file {name!r} cannot be read ({error})") from error


def _facts(update: CapturedUpdate) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "image_count": update.image_count,
        "image_shape": list(update.image_shape),
        "mean": list(update.normalisation.mean),
        "std": list(update.normalisation.std),
        "model_id": update.model_id,
        "weight_hash": update.weight_hash,
        "batch_norm": str(update.batch_norm),
        "buffers": update.buffers is not None,
        "kind": str(update.kind),
        "loss": update.loss,
        "defence": update.defence,
    }
    # Only a weight delta has it, so that the file of a gradient is what it always was.
    return facts if update.local is None else facts | {"local": dataclasses.asdict(update.local)}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse(reason: str) -> NoReturn:
    raise UpdateError(reason)


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The parsed header and the position where the tensors begin."""
    if size < 8:
        _refuse(f"it has {size} bytes, too few for a safetensors file; it is empty or cut off")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > LARGEST_HEADER_BYTES:
        _refuse(f"it declares a header of {length:,} bytes (at most {LARGEST_HEADER_BYTES:,}); it is not safetensors")
    if 8 + length > size:
        _refuse(f"its header of {length:,} bytes does not fit into its {size:,} bytes; it is cut off or no safetensors")
    header = _parse_json(file.read(length), "its header")
    return header, 8 + length


def _parse_json(text: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object without repeated keys."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            _refuse(f"{what} names an entry twice")
        return parsed

    try:
        parsed = json.loads(text, object_pairs_hook=once)
    except UpdateError:
        raise
    # ValueError covers syntax, encoding and absurdly long numbers; RecursionError absurd nesting.
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        _refuse(f"{what} is not a JSON object; it is damaged or not safetensors")
    return parsed


def _parse_metadata(metadata: object) -> dict[str, Any]:
    text = metadata.get(FORMAT_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        _refuse(f"it is safetensors without the metadata entry {FORMAT_KEY!r}; write it with CapturedUpdate.save")
    facts = _parse_json(text, "its metadata")
    version = facts.get("version")
    if version != FORMAT_VERSION or type(version) is not int:
        _refuse(
            f"its format version is {_short(version)} and this program reads version {FORMAT_VERSION}; "
            "update gradinversion or capture again"
        )
    return facts


def _parse_entry(key: str, value: object) -> _Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(f"the entry {_short(key)} of its header is malformed")
    shape, offsets, code = value["shape"], value["data_offsets"], value["dtype"]
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    counts_steps = key.startswith("buffer/") and key.endswith("num_batches_tracked")
    if dtype is None or (dtype is torch.int64) is not counts_steps:
        _refuse(f"tensor {_short(key)} has type {_short(code)}; allowed are F64, F32, F16 and BF16")
    if not _are_counts(shape) or len(shape) > LARGEST_RANK or 0 in shape:
        _refuse(f"tensor {_short(key)} has shape {_short(shape)}; it must be a list of up to 8 positive sizes")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(f"tensor {_short(key)} has data offsets {_short(offsets)}; they must be two rising positions")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        _refuse(f"tensor {_short(key)} of shape {_short(shape)} does not fit its {end - begin:,} bytes")
    return _Entry(dtype, tuple(shape), begin, end)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= LARGEST_FILE_BYTES for item in value)


def _check_layout(entries: dict[str, _Entry], available: int) -> None:
    """The tensors must fill the rest of the file exactly, without overlap."""
    position = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.begin):
        if entry.begin != position:
            _refuse("its tensors overlap or leave gaps; it is damaged")
        position = entry.end
    if position != available:
        _refuse(f"its tensors need {position:,} bytes and the file holds {available:,}; it is cut off or damaged")


def _read_tensor(file: BinaryIO, start: int, entry: _Entry) -> Tensor:
    file.seek(start + entry.begin)
    # A bytearray, since the tensor takes over its memory and must be writable.
    content = bytearray(file.read(entry.end - entry.begin))
    if len(content) != entry.end - entry.begin:
        _refuse("it became shorter while it was read")
    return torch.frombuffer(content, dtype=entry.dtype).reshape(entry.shape)


def _assemble(facts: dict[str, Any], tensors: dict[str, Tensor]) -> CapturedUpdate:
    groups: dict[str, dict[str, Tensor]] = {"gradient": {}, "buffer": {}}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        if group not in groups or not name:
            _refuse(f"tensor {_short(key)} is neither gradient/NAME nor buffer/NAME")
        groups[group][name] = tensor
    shape = facts.get("image_shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(side) is int for side in shape):
        _refuse(f"its image_shape is {_short(shape)}; it must be three whole numbers")
    count = facts.get("image_count")
    if type(count) is not int:
        _refuse(f"its image_count is {_short(count)}; it must be a whole number")
    if type(facts.get("buffers")) is not bool:
        _refuse(f"its entry buffers is {_short(facts.get('buffers'))}; it must be true or false")
    return CapturedUpdate(
        gradients=groups["gradient"],
        image_count=count,
        image_shape=(shape[0], shape[1], shape[2]),
        normalisation=Normalisation(_numbers(facts, "mean"), _numbers(facts, "std")),
        model_id=_text(facts, "model_id"),
        weight_hash=_text(facts, "weight_hash"),
        batch_norm=BatchNormMode(_choice(facts, "batch_norm", list(BatchNormMode))),
        buffers=groups["buffer"] if facts["buffers"] or groups["buffer"] else None,
        kind=UpdateKind(_choice(facts, "kind", list(UpdateKind))),
        loss=_text(facts, "loss"),
        defence=_text(facts, "defence"),
        local=_local(facts.get("local")),
    )


def _local(value: object) -> LocalTraining | None:
    """The client's local steps; ``LocalTraining`` checks the ranges, and here the types."""
    if value is None:
        return None
    fields = {field.name for field in dataclasses.fields(LocalTraining)}
    if not isinstance(value, dict) or value.keys() != fields:
        _refuse(f"its entry local is {_short(value)}; it must have the entries {', '.join(sorted(fields))}")
    for name in ("learning_rate", "momentum", "weight_decay"):
        # Comparing first keeps integers too large for a float away from float().
        if value[name] is not None and not (type(value[name]) in (int, float) and abs(value[name]) < 1e9):
            _refuse(f"its local {name} is {_short(value[name])}; it must be a finite number")
    for name in ("epochs", "batch_size"):
        if value[name] is not None and not (type(value[name]) is int and abs(value[name]) < 2**31):
            _refuse(f"its local {name} is {_short(value[name])}; it must be a whole number")
    if type(value["shuffled"]) is not bool:
        _refuse(f"its local shuffled is {_short(value['shuffled'])}; it must be true or false")
    return LocalTraining(**value)


def _numbers(facts: dict[str, Any], key: str) -> tuple[float, ...]:
    value = facts.get(key)
    # Comparing first keeps integers too large for a float away from float().
    if not isinstance(value, list) or not all(type(item) in (int, float) and abs(item) < 1e9 for item in value):
        _refuse(f"its {key} is {_short(value)}; it must be a list of finite numbers")
    return tuple(float(item) for item in value)


def _text(facts: dict[str, Any], key: str) -> str:
    value = facts.get(key)
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        _refuse(f"its {key} is {_short(value)}; it must be a text of at most {LONGEST_TEXT} characters")
    return value


def _choice(facts: dict[str, Any], key: str, allowed: list[Any]) -> str:
    value = facts.get(key)
    if not isinstance(value, str) or value not in allowed:
        _refuse(f"its {key} is {_short(value)}; it must be one of {', '.join(allowed)}")
    return value


def _short(value: object) -> str:
    """For an error message: a stranger's text may be long or hold control characters."""
    if type(value) is int and value.bit_length() > 200:
        return "a huge number"
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "something unprintable"
    return text if len(text) <= 60 else text[:60] + "…"

"""The result of a finished run in its storage: the tensors in one file, everything else as JSON beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from enum import Enum
from typing import Any

from torch import Tensor

from ..agents import Candidate, Outcome
from ..capture import ClientFacts, Normalisation, Provenance, RecoveredLabels
from ..capture.facts_file import read_facts, write_facts
from ..capture.stated import StatedFact
from ..peeling import KnownFeatures
from ..peeling.record import (
    Contrast,
    DecoderPhotos,
    End,
    FoundImages,
    ImagesBy,
    LoosePlaces,
    NetworkNode,
    PeelingRecord,
    RecoveredPlace,
)
from ..peeling.repeats import Repeats
from ..storage.folders import AbsentError, Storage, StorageError
from ..storage.json_file import OWN_ROOM, read_json
from ..storage.safetensors_reader import FormatError
from ..storage.schema import misfit
from ..storage.tensor_file import LARGEST_TENSORS, CheckpointError, StateFile, read_tensors, write_tensors
from ..target.belief import Belief
from .checkpoints import RESULT_FILE
from .reconstruction import Reconstruction, Source

_FORMAT = 4
_FACTS = f"checkpoints/{RESULT_FILE}"
# Two places, of which the facts name the one that counts: the other takes what replaces it.
_TENSORS = ("checkpoints/result.safetensors", "checkpoints/result.2.safetensors")
_LARGEST_FACTS = 256 * 2**20
# What JSON cannot say is an object with one of these keys; a key that begins with "$" itself gets one more.
_TENSOR, _FLOAT, _TUPLE = "$tensor", "$float", "$tuple"


def write_result(storage: Storage, result: Reconstruction) -> None:
    """Put the result into ``checkpoints/result.json`` and a file of tensors. The JSON is written last.

    Raises:
        StorageError: It cannot be written; the one that was there before is still whole.
    """
    tensors: dict[str, Tensor] = {}
    facts = _encode(result, "result", tensors)
    used = _tensors_in_use(storage)
    free = next(name for name in _TENSORS if name != used)
    try:
        file = write_tensors(storage, free, tensors)
        named = {"name": file.name, "sha256": file.sha256, "size": file.size}
        content = {"format": _FORMAT, "tensors": named, "result": facts}
        storage.write(_FACTS, json.dumps(content, allow_nan=False).encode())
    except StorageError:
        # Half of it helps nobody, and takes the room of what is tried next.
        with contextlib.suppress(StorageError):
            storage.remove(free)
        raise
    if used is not None:
        storage.remove(used)


def _tensors_in_use(storage: Storage) -> str | None:
    """The file of tensors of the result that is there; None where there is none that could be read."""
    try:
        name = read_json(storage.read(_FACTS, _LARGEST_FACTS), OWN_ROOM)["tensors"]["name"]
    except (StorageError, FormatError, KeyError, TypeError):
        return None
    return name if name in _TENSORS else None


def read_result(storage: Storage) -> Reconstruction | None:
    """The result that ``write_result`` put there, equal in every bit; None where there is none.

    Raises:
        CheckpointError: One of the files is torn, or no such file; it is named.
        StorageError: The storage cannot be read now.
    """
    where = storage.locate(_FACTS)
    try:
        content = read_json(storage.read(_FACTS, _LARGEST_FACTS), OWN_ROOM)
    except AbsentError:
        return None
    except FormatError as error:
        raise CheckpointError(f"{where} is torn or no result of gradinversion: {error}") from None
    try:
        if content["format"] != _FORMAT:
            raise CheckpointError(f"{where} has format {content['format']!r}; this version reads {_FORMAT}")
        named = content["tensors"]
        if named["name"] not in _TENSORS:
            raise ValueError(f"tensors in {named['name']!r}")
        written = StateFile(named["name"], str(named["sha256"]), int(named["size"]))
        if written.size > LARGEST_TENSORS:
            raise ValueError(f"tensors of {written.size:,} bytes")
        tensors = read_tensors(storage, written)
        found = _decode(content["result"], tensors)
        if not {"facts", "limits", "known", "peeling", "belief"} <= found.keys():
            # Without them nothing would be in doubt, and a verdict of "no leak shown" not earned.
            raise CheckpointError(
                f"{where} was written by an older version, which kept no facts about the client: run the attack again "
                "in another folder (out=)"
            )
        result = _assemble(found)
        _require_whole(result)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{where} is no result of this version of gradinversion: {error!r}") from None
    return result


def _require_whole(result: Reconstruction) -> None:
    """Refuse what is of other types than a result's, or whose parts are not of the same images.

    Raises:
        ValueError: What does not fit.
    """
    if wrong := misfit(result, Reconstruction, "the result"):
        raise ValueError(wrong)
    shape, images = result.images.shape, len(result.images)
    counts = {len(result.labels.labels), len(result.labels.confidence), len(result.agreement), len(result.sources)}
    shapes = {result.consensus.shape, *(candidate.images.shape for candidate in result.candidates)}
    if counts != {images} or shapes != {shape} or not result.candidates:
        raise ValueError(f"images of shape {tuple(shape)}, with parts of {sorted(counts)} and {len(shapes)} shapes")
    mean, std = result.normalisation.mean, result.normalisation.std
    if not len(mean) == len(std) == shape[1] or int(result.labels.labels.min()) < 0:
        raise ValueError("labels below 0, or a normalisation of other channels")


def remove_result(storage: Storage) -> None:
    """Remove the result of an earlier run, for a run that begins anew in the same folder.

    Raises:
        StorageError: It cannot be removed.
    """
    for name in (_FACTS, *_TENSORS):
        storage.remove(name)


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON knows it; its tensors go into ``tensors``."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {_TENSOR: name}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, ClientFacts):
        return write_facts(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        pairs = ((_escape(key), _encode(item, f"{name}.{key}", tensors)) for key, item in value.items())
        return dict(pairs)
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(float(value))}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which a result file does not hold")


def _escape(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the key {key!r} is a {type(key).__name__}, and a result file holds texts alone")
    return f"${key}" if key.startswith("$") else key


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What ``_encode`` was given, with a dictionary for each dataclass and a plain value for each enum."""
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_TENSOR}:
        return tensors[value[_TENSOR]]
    if value.keys() == {_FLOAT}:
        return float(value[_FLOAT])
    if value.keys() == {_TUPLE}:
        return tuple(_decode(item, tensors) for item in value[_TUPLE])
    return {key.removeprefix("$"): _decode(item, tensors) for key, item in value.items()}


def _assemble(facts: dict[str, Any]) -> Reconstruction:
    candidates = tuple(Candidate(**row | {"outcome": Outcome(row["outcome"])}) for row in facts["candidates"])
    return Reconstruction(
        **facts
        | {
            "labels": RecoveredLabels(**facts["labels"]),
            "candidates": candidates,
            "sources": tuple(Source(**row) for row in facts["sources"]),
            "outcome": Outcome(facts["outcome"]),
            "normalisation": Normalisation(**facts["normalisation"]),
            "belief": Belief(**facts["belief"] | {"facts": read_facts(facts["belief"]["facts"])}),
            "known": None if facts["known"] is None else KnownFeatures(**facts["known"]),
            "peeling": None if facts["peeling"] is None else _record(facts["peeling"]),
            "facts": tuple(StatedFact(**row | {"provenance": Provenance(row["provenance"])}) for row in facts["facts"]),
        }
    )


def _record(facts: dict[str, Any]) -> PeelingRecord:
    found, photos, repeats = facts["found"], facts["photos"], facts.get("repeats")
    loose = facts.get("loose")
    return PeelingRecord(
        **facts
        | {
            "places": tuple(RecoveredPlace(**row) for row in facts["places"]),
            "ends": tuple(End(**row) for row in facts["ends"]),
            "nodes": tuple(NetworkNode(**row) for row in facts["nodes"]),
            "found": None if found is None else FoundImages(**found | {"by": ImagesBy(found["by"])}),
            "photos": None if photos is None else DecoderPhotos(**photos),
            "contrast": Contrast(facts["contrast"]),
            "loose": None if loose is None else LoosePlaces(**loose),
            "repeats": None if repeats is None else Repeats(**repeats),
        }
    )

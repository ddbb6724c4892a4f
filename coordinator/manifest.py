"""The manifest of a checkpoint: read as the file of a stranger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from ..storage.folders import Storage
from ..storage.json_file import OWN_ROOM, RoomError, read_json
from ..storage.safetensors_reader import FormatError
from ..storage.schema import misfit
from ..storage.tensor_file import LARGEST_TENSORS, CheckpointError, StateFile, TornError, read_file

FORMAT = 2
TENSORS = "consensus.safetensors"
"""The file of what is not a seed's."""
_LARGEST_JSON = 256 * 2**20


def read_manifest(storage: Storage, name: str) -> dict[str, Any]:
    """A manifest, or another small file of JSON.

    Raises:
        TornError: It is none.
        CheckpointError: It may be whole, and would take too much memory.
        StorageError: It cannot be read now.
    """
    where = storage.locate(name)
    try:
        values = read_json(read_file(storage, name, _LARGEST_JSON), OWN_ROOM)
    except RoomError as error:
        # Passed over as a torn one, a run of which it is the last would begin anew.
        raise CheckpointError(f"{where} is not read: {error}") from None
    except FormatError as error:
        raise TornError(f"{where} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise TornError(f"{where} cannot be read: it is not a JSON object")
    return values


class _File(TypedDict):
    sha256: str
    size: int
    step: int


class _SeedFile(_File, total=False):
    seed: int
    """Only of a seed's state."""


class _Manifest(TypedDict):
    format: int
    round: int
    identity: dict[str, Any]
    files: dict[str, _SeedFile]
    progress: dict[str, Any]


def parse_files(
    where: str, folder: str, index: int, manifest: Mapping[str, Any]
) -> tuple[dict[int, StateFile], StateFile | None]:
    """The states by seed, and the file of the other tensors.

    Args:
        where: Names the manifest to a person.
        folder: That it lies in.
        index: The round that it must be of.
        manifest: As `read_manifest` gave it.

    Raises:
        TornError: It is of something else, or describes files that cannot be.
    """
    wrong = misfit(manifest, _Manifest)
    if wrong or (manifest["format"], manifest["round"]) != (FORMAT, index):
        raise TornError(f"{where} is not the manifest of round {index} in format {FORMAT} ({wrong or 'of another'})")
    states: dict[int, StateFile] = {}
    others: dict[str, StateFile] = {}
    for name, entry in manifest["files"].items():
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise TornError(f"{where} names a file outside its folder: {name!r}")
        file = StateFile(f"{folder}/{name}", entry["sha256"], entry["size"], entry["step"])
        if not 0 <= file.size <= LARGEST_TENSORS or file.step < 0 or entry.get("seed") in states:
            raise TornError(f"{where} describes {name!r} badly")
        if "seed" in entry:
            states[entry["seed"]] = file
        else:
            others[name] = file
    return states, others.get(TENSORS)

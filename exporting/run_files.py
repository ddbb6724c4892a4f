"""What a finished run left in its folder, as plain rows; the files may be anybody's, and are read as such."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..refusal import Refusal
from ..storage.folders import Storage
from ..storage.json_file import read_json
from ..storage.safetensors_reader import FormatError

METRICS, REPORT, AUDIT = "metrics.jsonl", "report.json", "audit.json"
_LARGEST = 256 * 2**20
_COUNTS = ("round", "seed", "step")
# What the libraries that show curves can hold.
_LARGEST_COUNT = 2**63
MOST_SEEDS = 10_000
"""Of one run, whose curves are shown."""
# Of curves that are shown: the others say where a row belongs, and are no curve.
NO_CURVE = frozenset({"schema_version", "round", "seed", "incarnation", "step"})

Row = Mapping[str, Any]


class ExportError(Refusal, RuntimeError):
    """A run cannot be exported; one sentence that says why and what to do."""


@dataclass(frozen=True)
class RunFiles:
    """The numbers in a folder; empty or None where it does not have them."""

    curves: tuple[Row, ...]
    """A row for each seed and round, as in ``metrics.jsonl``."""
    report: Mapping[str, Any] | None
    """``report.json``."""
    grid: Mapping[str, Any] | None
    """``audit.json``."""


def read_run(storage: Storage) -> RunFiles:
    """The numbers of the run in a folder.

    Raises:
        ExportError: There are none, or a file is not what its name says.
        StorageError: It cannot be read.
    """
    found = RunFiles(_curves(storage), _object(storage, REPORT), _object(storage, AUDIT))
    if not found.curves and found.report is None and found.grid is None:
        raise ExportError(
            f"out={storage.url} holds nothing to export: there is no {METRICS}, {REPORT} or {AUDIT} in it; give the "
            "folder of a run that has ended."
        )
    return found


def _curves(storage: Storage) -> tuple[Row, ...]:
    if not storage.exists(METRICS):
        return ()
    # One line at a time: a list of them all may take many times the file.
    lines = enumerate(io.BytesIO(storage.read(METRICS, _LARGEST)), 1)
    rows = tuple(_row(line, f"line {number} of {storage.locate(METRICS)}") for number, line in lines)
    if len({row["seed"] for row in rows}) > MOST_SEEDS:
        raise ExportError(f"{storage.locate(METRICS)} has curves of more than {MOST_SEEDS:,} seeds.")
    return rows


def _row(line: bytes, where: str) -> Row:
    try:
        row = read_json(line)
    except FormatError:
        row = None
    if not isinstance(row, dict) or any(not _counts(row.get(name)) for name in _COUNTS):
        raise ExportError(f"{where} is no row of a loss curve: it needs whole numbers for {', '.join(_COUNTS)}.")
    if not all(map(_is_number, row.values())):
        raise ExportError(f"{where} holds something that is no number: every value is a number or null.")
    return row | {name: int(row[name]) for name in _COUNTS}


def _is_number(value: Any) -> bool:
    return value is None or type(value) is float or (type(value) is int and abs(value) < _LARGEST_COUNT)


def _counts(value: Any) -> bool:
    """Whether it is a whole number, which a seed's step is as 1.0 too."""
    whole = type(value) is int or (type(value) is float and value.is_integer())
    return whole and 0 <= value < _LARGEST_COUNT


def _object(storage: Storage, name: str) -> Mapping[str, Any] | None:
    if not storage.exists(name):
        return None
    try:
        found, reason = read_json(storage.read(name, _LARGEST)), "it holds something else"
    except FormatError as error:
        found, reason = None, str(error)
    if not isinstance(found, dict):
        raise ExportError(f"{storage.locate(name)} is no JSON object ({reason}): `report` writes it again.")
    return found

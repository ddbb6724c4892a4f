"""The numbers of a run as tables for a spreadsheet: ``curves.csv``, ``images.csv`` and, of a grid, ``cells.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..storage.folders import Storage
from .run_files import ExportError, Row, RunFiles

# A spreadsheet takes a text that begins so for a formula, and names of files are anybody's.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
# Rows that all have other names would make a table that grows with their square.
_MOST_CELLS = 2**25
# Objects within objects, of which a report has three.
_DEEPEST = 8


def write_tables(run: RunFiles, storage: Storage) -> list[str]:
    """Put each table that there are rows for into the folder of the run; their names."""
    tables = {
        "curves.csv": list(run.curves),
        "images.csv": _numbered((run.report or {}).get("images")),
        "cells.csv": _numbered((run.grid or {}).get("cells")),
    }
    written = {name: table(rows) for name, rows in tables.items() if rows}
    for name, content in written.items():
        storage.write(name, content.encode(errors="backslashreplace"))
    return list(written)


def table(rows: Sequence[Row]) -> str:
    """Rows as comma-separated values with a line of names; what a row does not have is empty.

    Raises:
        ExportError: The table would have more than 33 million cells.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if len(names) * len(rows) > _MOST_CELLS:
        raise ExportError(
            f"A table of {len(rows):,} rows that have {len(names):,} different names together is not written: at most "
            f"{_MOST_CELLS:,} cells are; the folder's files are not those of a run."
        )
    file = io.StringIO()
    writer = csv.DictWriter(file, [_plain(name) for name in names], restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({_plain(name): _plain(value) for name, value in row.items()})
    return file.getvalue()


def _numbered(found: Any) -> list[Row]:
    """Objects of a report as flat rows; lists in them are no cells of a table."""
    return [dict(_flat(entry)) for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _flat(entry: Mapping[str, Any], before: str = "", depth: int = 0) -> Iterable[tuple[str, Any]]:
    for name, value in entry.items():
        if isinstance(value, dict):
            if depth < _DEEPEST:
                yield from _flat(value, f"{before}{name}.", depth + 1)
        elif not isinstance(value, list):
            yield before + name, value


def _plain(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value

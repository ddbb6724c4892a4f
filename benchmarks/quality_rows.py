"""What the benchmark of quality has measured: one row per cell, photo set, method and settings, kept in a file."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""``cell``, ``set``, ``method`` and ``settings``, then what was measured."""


class Store:
    """A json file of rows, which several processes may add to.

    Args:
        path: Made when the first row is added.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        return list(self._read().get("rows", []))

    def find(self, cell: str, number: int, method: str, settings: Mapping[str, Any]) -> Row | None:
        """The row of these settings, if it was measured."""
        wanted = _key({"cell": cell, "set": number, "method": method, "settings": settings})
        return next((row for row in self.rows if _key(row) == wanted), None)

    def add(self, row: Row) -> None:
        """Keep a row, in place of the one with the same settings."""

        def change(facts: dict[str, Any]) -> None:
            others = [old for old in facts.get("rows", []) if _key(old) != _key(row)]
            facts["rows"] = sorted([*others, row], key=_key)

        self._change(change)

    def note(self, name: str, value: Any) -> None:
        """Keep a fact beside the rows."""
        self._change(lambda facts: facts.update({name: value}))

    def _read(self) -> dict[str, Any]:
        return json.loads(self._path.read_text()) if self._path.is_file() else {}

    def _change(self, change: Callable[[dict[str, Any]], None]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            facts = self._read()
            change(facts)
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps(facts, indent=1) + "\n")
            os.replace(fresh, self._path)
        finally:
            os.close(lock)


def _key(row: Mapping[str, Any]) -> str:
    return json.dumps([row["cell"], row["set"], row["method"], row["settings"]], sort_keys=True)


def select(rows: list[Row], cell: str, method: str, **settings: Any) -> dict[int, Row]:
    """By photo set, the rows of a method whose settings have these values among others."""
    return {
        row["set"]: row
        for row in rows
        if (row["cell"], row["method"]) == (cell, method)
        and all(row["settings"].get(name) == value for name, value in settings.items())
    }


def tried(rows: list[Row], cell: str, steps: int, sets: tuple[int, ...]) -> dict[float, float]:
    """The peer's mean PSNR over these photo sets by its weight of total variation, where it was run on all of them."""
    found: dict[float, list[float]] = {}
    for row in rows:
        settings = row["settings"]
        if (row["cell"], row["method"]) != (cell, "peer") or row["set"] not in sets:
            continue
        if (settings["steps"], settings["restarts"]) == (steps, 1):
            found.setdefault(settings["weight"], []).append(row["psnr"])
    return {w: sum(values) / len(values) for w, values in sorted(found.items()) if len(values) == len(sets)}


def tuned_weight(rows: list[Row], cell: str, steps: int, sets: tuple[int, ...]) -> float | None:
    """The weight with the highest of these means; None before there is one."""
    means = tried(rows, cell, steps, sets)
    return max(means, key=means.__getitem__) if means else None

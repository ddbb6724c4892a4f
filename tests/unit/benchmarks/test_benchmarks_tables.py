"""The tables of the documentation are those that the benchmarks print from their results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gradinversion.benchmarks import attacks, defences, labels, practical_defences

ROOT = Path(__file__).resolve().parents[3]


def rows(name: str) -> list[dict[str, Any]]:
    found = json.loads((ROOT / "benchmarks" / "results" / name).read_text())
    return found if isinstance(found, list) else found["rows"]


def printed(name: str) -> list[str]:
    if name == "labels":
        return labels.table(rows("labels.json"))
    if name == "attacks":
        return attacks.table(attacks.in_order(rows("attacks.json"), attacks.CELLS, 300), attacks.CELLS)
    if name == "practical_defences":
        return practical_defences.table(rows("practical_defences.json"))
    return defences.table(rows("defences.json"))


@pytest.mark.parametrize("name", ["labels", "attacks", "defences", "practical_defences"])
def test_every_line_of_the_table_is_in_the_documentation(name: str) -> None:
    text = (ROOT / "docs" / f"{name.removeprefix('practical_')}.md").read_text().splitlines()
    lines = [line for line in printed(name) if line.startswith("|")]
    assert len(lines) > 10
    assert [line for line in lines if line not in text] == []
    start = text.index(lines[0])
    assert text[start : start + 5] == lines[:5]


def test_a_row_takes_the_place_of_the_one_of_the_same_measurement() -> None:
    found: list[dict[str, Any]] = []
    for psnr, steps in ((1.0, 300), (2.0, 300), (3.0, 600)):
        attacks.add(found, {"cell": "C4", "set": 1, "attack": "dlg", "steps": steps, "psnr": psnr})
    assert [(row["psnr"], row["steps"]) for row in found] == [(2.0, 300), (3.0, 600)]
    assert [row["psnr"] for row in attacks.in_order(found, ("C4",), 600)] == [3.0]
    assert attacks.in_order(found, ("C8",), 600) == []

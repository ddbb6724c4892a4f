"""What an audit leaves behind: ``audit.json`` and ``audit.html`` in ``out``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..audit.assumptions import state_provenance
from ..audit.files import replace_files
from ..config import RunConfig, command_words, to_plain
from .accuracy import Accuracy
from .grid import CELLS, Grid
from .results import CellResult
from .verdict import GridVerdict, judge_grid

PAGE, NUMBERS = "audit.html", "audit.json"
UNDEFENDED = "no defence"


@dataclass(frozen=True)
class AuditFacts:
    """All that an audit knows when it ends."""

    config: RunConfig
    grid: Grid
    results: Mapping[str, CellResult]
    """By name of the cell; each has one."""
    configs: Mapping[str, RunConfig]
    """With which each cell was run, where it could be."""
    accuracies: Mapping[str, Accuracy]
    """By name of the defence."""
    accuracy_problems: Mapping[str, str]
    notes: tuple[str, ...]
    """What was reduced or left out, in sentences."""
    seconds: float

    @property
    def accuracy_costs(self) -> dict[str, float]:
        """Accuracy that each defence costs, in [0, 1]; without the figure of no defence nothing is known."""
        usual = self.accuracies.get(UNDEFENDED)
        if usual is None:
            return {}
        return {name: usual.mean - found.mean for name, found in self.accuracies.items() if name != UNDEFENDED}

    def command(self, name: str) -> str | None:
        """What runs one cell again by itself, with its controls."""
        config = self.configs.get(name)
        return None if config is None else shlex.join(["python", "run.py", *command_words(config)])

    @property
    def whole_command(self) -> str:
        """What runs the audit again."""
        words = [word for word in command_words(self.config) if word != "resume=true"]
        return shlex.join(["python", "run.py", "audit", *words])


def write_audit(facts: AuditFacts) -> GridVerdict:
    """Judge the grid and write its page and its numbers, both complete before an old one is replaced.

    Raises:
        ReportError: ``out`` cannot be written.
    """
    from .page import render

    verdict = judge_grid(facts.grid, facts.results, facts.accuracy_costs)
    provenance = state_provenance()
    numbers = json.dumps(to_dict(facts, verdict, provenance), indent=2, allow_nan=False) + "\n"
    replace_files(facts.config.out, {NUMBERS: numbers.encode(), PAGE: render(facts, verdict, provenance).encode()})
    return verdict


def to_dict(facts: AuditFacts, verdict: GridVerdict, provenance: Mapping[str, str]) -> dict[str, Any]:
    """The audit as JSON values; pictures stay on the page."""
    return {
        "leaks": verdict.leaks,
        "verdict": f"{verdict.headline}. {verdict.advice}",
        "caution": verdict.caution,
        "changes": [
            {
                "name": change.name,
                "effect": change.effect,
                "leaked": change.leaked,
                "images": change.images,
                "accuracy_cost": change.accuracy,
            }
            for change in verdict.changes
        ],
        "cells": [_cell(facts, position) for position in range(len(facts.grid.cells))],
        "accuracy": {name: asdict(found) | {"mean": found.mean} for name, found in facts.accuracies.items()},
        "accuracy_problems": dict(facts.accuracy_problems),
        "notes": list(facts.notes),
        "seconds": facts.seconds,
        "command": facts.whole_command,
        "provenance": dict(provenance),
        "config": to_plain(facts.config),
    }


def _cell(facts: AuditFacts, position: int) -> dict[str, Any]:
    cell = facts.grid.cells[position]
    result = facts.results[cell.name]
    numbers = {name: value for name, value in asdict(result).items() if name not in ("worst", "versions")}
    levels = {axis.title: axis.levels[level].name for axis, level in zip(facts.grid.axes, cell.levels, strict=True)}
    return {
        "name": cell.name,
        "levels": levels,
        "folder": f"{CELLS}/{cell.name}",
        **numbers,
        "leaked_share": result.share,
        "command": facts.command(cell.name),
    }

"""What an audit leaves behind: ``audit.json`` and ``audit.html`` in ``out``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..audit.assumptions import state_provenance
from ..audit.files import replace_files
from ..settings.run import to_plain
from .facts import AuditFacts
from .grid import CELLS
from .page import render
from .verdict import GridVerdict, judge_grid

PAGE, NUMBERS = "audit.html", "audit.json"
_ELSEWHERE = ("worst", "versions", "label_scores")


def write_audit(facts: AuditFacts) -> GridVerdict:
    """Judge the grid and write its page and its numbers, both complete before an old one is replaced.

    Raises:
        ReportError: ``out`` cannot be written.
    """
    verdict = judge_grid(facts.grid, facts.results, facts.prices)
    provenance = state_provenance()
    numbers = json.dumps(to_dict(facts, verdict, provenance), indent=2, allow_nan=False) + "\n"
    replace_files(facts.config.out, {NUMBERS: numbers.encode(), PAGE: render(facts, verdict, provenance).encode()})
    return verdict


def to_dict(facts: AuditFacts, verdict: GridVerdict, provenance: Mapping[str, str]) -> dict[str, Any]:
    """The audit as JSON values; pictures stay on the page."""
    return {
        "leaks": verdict.leaks,
        "verdict": f"{verdict.headline}. {verdict.advice}",
        "exactness": verdict.exactness,
        "caution": verdict.caution,
        "worst_case": verdict.worst_case,
        "changes": [
            {
                "name": change.name,
                "effect": change.effect,
                "leaked": change.leaked,
                "images": change.images,
                "labels": change.labels,
                "exactness": change.exactness,
                "exact_places": change.exact_places,
                "accuracy_cost": change.cost,
                "training": None if change.price is None else change.price.training,
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
    numbers = {name: value for name, value in asdict(result).items() if name not in _ELSEWHERE}
    levels = {axis.title: axis.levels[level].name for axis, level in zip(facts.grid.axes, cell.levels, strict=True)}
    return {
        "name": cell.name,
        "levels": levels,
        "folder": f"{CELLS}/{cell.name}",
        **numbers,
        "label_scores": None if result.label_scores is None else result.label_scores.to_dict(),
        "leaked_share": result.share,
        "command": facts.command(cell.name),
    }

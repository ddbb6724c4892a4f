"""``metrics.jsonl`` is what its schema says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib import resources

import jsonschema
import pytest
from gradinversion import coordinator
from gradinversion.coordinator.saving import _line

SCHEMA = json.loads(resources.files(coordinator).joinpath("metrics.schema.json").read_text())


def strict(text: str) -> Iterator[dict[str, float | None]]:
    def refuse(constant: str) -> float:
        raise AssertionError(f"bare {constant}")

    return (json.loads(line, parse_constant=refuse) for line in text.splitlines())


def test_lines_are_as_their_schema_says() -> None:
    row: dict[str, float] = {"round": 0, "seed": 3, "incarnation": 0, "step": 10, "gradient": 0.5, "total": math.nan}
    (line,) = strict(_line(row | {"total_variation": math.inf, "steps_per_second": 4.0}))
    jsonschema.validate(line, SCHEMA)
    assert line["total"] is None
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(line | {"step": "ten"}, SCHEMA)

"""``report.json`` is what its schema says."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from importlib import resources
from typing import Any

import jsonschema
import pytest
from gradinversion import audit
from gradinversion.audit import ControlResult, ControlScore, evaluate
from gradinversion.audit.report import REPORT_VERSION, to_dict
from gradinversion.capture import PrivateBatch
from gradinversion.coordinator import Reconstruction

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]


@pytest.fixture
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(resources.files(audit).joinpath("report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.mark.parametrize("truth", [True, False])
def test_a_report_is_as_its_schema_says(attack: Attack, schema: dict[str, Any], truth: bool) -> None:
    reconstruction, private = attack(batch=4, seeds=3)
    report = evaluate(reconstruction, private if truth else None)
    values = to_dict(report, reconstruction)
    jsonschema.validate(values, schema)
    assert values["schema_version"] == REPORT_VERSION == schema["properties"]["schema_version"]["const"]
    # A key that is added is told there, with what it means.
    assert set(values) - set(schema["properties"]) == set()


def test_a_report_with_a_control_and_numbers_that_json_lacks(attack: Attack, schema: dict[str, Any]) -> None:
    reconstruction, private = attack()
    report = evaluate(dataclasses.replace(reconstruction, gradient_loss=math.nan), private)
    images = tuple(dataclasses.replace(one, controls={"no_gradient": ControlScore(math.inf)}) for one in report.images)
    report = dataclasses.replace(report, images=images, controls=(ControlResult("no_gradient", "every seed diverged"),))
    jsonschema.validate(to_dict(report, dataclasses.replace(reconstruction, gradient_loss=math.nan)), schema)


@pytest.mark.parametrize(("key", "value"), [("leak", "a bit"), ("psnr_mean", "high"), ("images", []), ("facts", None)])
def test_the_schema_refuses_what_is_no_report(attack: Attack, schema: dict[str, Any], key: str, value: Any) -> None:
    reconstruction, private = attack()
    values = to_dict(evaluate(reconstruction, private), reconstruction)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values | {key: value}, schema)

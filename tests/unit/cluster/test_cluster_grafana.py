"""The dashboard file: what Grafana needs of it, and that it asks for what is exported."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from gradinversion.cluster.metrics import METRICS, MetricType

ROOT = Path(__file__).resolve().parents[3]
COLUMNS = 24


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((ROOT / "cluster" / "grafana.json").read_text(encoding="utf-8"))


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def names(text: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", text))


def test_every_panel_asks_for_an_exported_metric_and_for_no_other(dashboard: dict[str, Any]) -> None:
    exported = {spec.exported_name for spec in METRICS}
    for panel in dashboard["panels"]:
        assert panel["targets"], panel["title"]
    for query in queries(dashboard):
        assert names(query), query
        assert names(query) <= exported, query
        for word in re.findall(r"\bgradinversion_\w+", query):
            pytest.fail(f"{word} in {query!r} lacks Ray's prefix")


def test_every_metric_has_a_panel(dashboard: dict[str, Any]) -> None:
    assert set().union(*map(names, queries(dashboard))) == {spec.exported_name for spec in METRICS}


def test_every_series_is_of_the_chosen_run(dashboard: dict[str, Any]) -> None:
    for query in queries(dashboard):
        assert len(re.findall(r'\bray_\w+\{run="\$run"\}', query)) == len(re.findall(r"\bray_\w+", query))


def test_seeds_are_told_apart_where_there_are_any(dashboard: dict[str, Any]) -> None:
    by_seed = {spec.exported_name for spec in METRICS if "seed" in spec.tags}
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            several = bool(names(target["expr"]) & by_seed)
            assert ("by (seed)" in target["expr"]) == several
            assert ("{{seed}}" in target["legendFormat"]) == several


def test_counters_of_dead_processes_are_not_taken(dashboard: dict[str, Any]) -> None:
    counters = {spec.exported_name for spec in METRICS if spec.type is MetricType.COUNTER}
    asked = [query for query in queries(dashboard) if names(query) & counters]
    assert len(asked) == len(counters)
    for query in asked:
        assert " and on (run, WorkerId) ray_gradinversion_rounds_planned{" in query
        assert "sum" not in query


def test_it_can_be_imported_with_any_data_source_and_run(dashboard: dict[str, Any]) -> None:
    assert dashboard["title"]
    assert dashboard["uid"]
    assert isinstance(dashboard["schemaVersion"], int)
    assert "id" not in dashboard  # an id is that of one Grafana's database
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["run"]["type"] == "query"
    assert names(variables["run"]["definition"]) <= {spec.exported_name for spec in METRICS}
    sources = re.findall(r'"uid": "([^"]+)"', json.dumps([dashboard["panels"], dashboard["templating"]]))
    assert set(sources) == {"${datasource}"}


def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert min(place["x"], place["y"]) >= 0
        assert min(place["w"], place["h"]) > 0
        assert place["x"] + place["w"] <= COLUMNS
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)

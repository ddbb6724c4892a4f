"""Which values go to Prometheus, with Ray's metrics replaced by ones that keep what they are given."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gradinversion.cluster import metrics
from gradinversion.cluster.metrics import METRICS, MetricType, RunMetrics
from gradinversion.coordinator.status import SeedStatus, Status

ROOT = Path(__file__).resolve().parents[3]
SEED = SeedStatus(3, step=25, losses={"gradient": 0.5, "total": 0.7}, steps_per_second=4.0, incarnation=1, deaths=2)
STATUS = Status(4, 100, (SEED, SeedStatus(4, present=False)), round=1, round_seconds=6.5, computing=0.9, began=1000.0)


class Kept:
    """What Ray's metrics are to `RunMetrics`."""

    values: dict[tuple[str, ...], float]
    sent = 0

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.tag_keys = name, tag_keys

    def key(self, tags: dict[str, str]) -> tuple[str, ...]:
        assert tuple(tags) == self.tag_keys
        return (self.name, *tags.values())

    def set(self, value: float, tags: dict[str, str]) -> None:
        Kept.values[self.key(tags)] = value
        Kept.sent += 1

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0
        Kept.values[self.key(tags)] = Kept.values.get(self.key(tags), 0) + value


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunMetrics]:
    Kept.values, Kept.sent = {}, 0
    monkeypatch.setattr(metrics, "Gauge", Kept)
    monkeypatch.setattr(metrics, "Counter", Kept)
    made = RunMetrics("r")
    yield made
    made.close()


def value(name: str, *tags: str) -> float | None:
    return Kept.values.get((f"gradinversion_{name}", "r", *tags))


def test_every_metric_is_exported_and_no_other(run: RunMetrics) -> None:
    run.observe(STATUS)
    assert {key[0] for key in Kept.values} == {spec.name for spec in METRICS}


def test_values_are_those_of_the_status(run: RunMetrics) -> None:
    run.observe(replace(STATUS, saved_round=0))
    assert value("seed_gradient_loss", "3") == 0.5
    assert value("seed_objective", "3") == 0.7
    assert value("seed_steps", "3") == 25
    assert value("seed_steps_per_second", "3") == 4.0
    assert (value("seed_present", "3"), value("seed_present", "4")) == (1, 0)
    assert (value("agents_present"), value("rounds_done"), value("rounds_planned")) == (1, 1, 4)
    assert (value("round_seconds"), value("computing_ratio"), value("checkpoint_round")) == (6.5, 0.9, 0)


def test_a_seed_without_a_finite_loss_has_none(run: RunMetrics) -> None:
    run.observe(replace(STATUS, seeds=(replace(SEED, losses={"gradient": math.nan}), SeedStatus(4))))
    assert value("seed_gradient_loss", "3") is None
    assert value("seed_gradient_loss", "4") is None
    assert value("seed_steps", "3") == 25


def test_counters_grow_to_the_totals_and_never_shrink(run: RunMetrics) -> None:
    for deaths, counted in ((2, 2), (2, 2), (5, 5), (3, 5), (5, 5), (6, 6)):
        run.observe(replace(STATUS, seeds=(replace(SEED, deaths=deaths),)))
        assert value("seed_deaths_total", "3") == counted
    assert value("seed_restarts_total", "3") == 1


def test_a_new_process_begins_at_the_totals_of_the_run(run: RunMetrics) -> None:
    run.observe(STATUS)
    Kept.values = {}  # another process, another series
    again = RunMetrics("r")
    again.observe(replace(STATUS, seeds=(replace(SEED, deaths=3),)))
    again.close()
    assert value("seed_deaths_total", "3") == 3


def test_the_age_of_the_checkpoint_counts_from_the_start_of_the_run_until_there_is_one(
    run: RunMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [2000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    run.observe(STATUS)
    assert value("checkpoint_timestamp_seconds") == 1000.0
    run.observe(replace(STATUS, saved_round=0))
    now[0] = 2500.0
    run.observe(replace(STATUS, saved_round=0))
    assert value("checkpoint_timestamp_seconds") == 2000.0
    run.observe(replace(STATUS, saved_round=1))
    assert value("checkpoint_timestamp_seconds") == 2500.0


def test_values_are_sent_again_until_it_is_closed(run: RunMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_REPEAT_SECONDS", 0.001)
    repeating = RunMetrics("r")
    repeating.observe(STATUS)
    once = len([key for key in Kept.values if not key[0].endswith("_total")])
    for _ in range(1000):
        if Kept.sent >= 3 * once:
            break
        time.sleep(0.01)
    assert Kept.sent >= 3 * once
    repeating.close()
    repeating._thread.join()
    assert value("seed_deaths_total", "3") == 2  # a counter is not counted again


def test_names_follow_the_conventions_of_prometheus() -> None:
    for spec in METRICS:
        assert re.fullmatch(r"gradinversion_[a-z_]+", spec.name)
        assert (spec.type is MetricType.COUNTER) == spec.name.endswith("_total")
        assert spec.tags in (("run",), ("run", "seed"))
        assert ("seed" in spec.tags) == spec.name.startswith("gradinversion_seed_")
    assert len({spec.name for spec in METRICS}) == len(METRICS)


def test_the_page_lists_exactly_the_exported_metrics() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `ray_")]
    expected = [
        f"| `{spec.exported_name}` | {spec.type} | {', '.join(spec.tags)} | {spec.unit} | {spec.meaning} |"
        for spec in METRICS
    ]
    assert rows == expected
    assert set(re.findall(r"ray_gradinversion_\w+", page)) == {spec.exported_name for spec in METRICS}

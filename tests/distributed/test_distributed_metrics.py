"""A run's metrics on the Prometheus endpoint of a real Ray."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from typing import Any

import ray
from gradinversion.cluster.metrics import METRICS, RunMetrics
from gradinversion.coordinator.status import SeedStatus, Status

SEED = SeedStatus(3, step=25, losses={"gradient": 0.1234, "total": 0.7}, steps_per_second=4.5, incarnation=1, deaths=2)
STATUS = Status(4, 100, (SEED,), round=1, round_seconds=6.5, computing=0.9)
# Ray sends on every 10 seconds; a slow machine may need a few more tries.
TRIES = 120


class Observer:
    """A process that exports a status, as the coordinator's does."""

    def __init__(self, run: str) -> None:
        self._metrics = RunMetrics(run)

    def observe(self, status: Status) -> None:
        self._metrics.observe(status)


def scrape() -> str:
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    # The node's own address may lead through a proxy that the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
            return text
    except (urllib.error.URLError, ConnectionError):
        return ""  # not listening yet


def samples(text: str, run: str) -> dict[tuple[str, str], list[float]]:
    """Values by name and seed, of all processes of a run."""
    found: dict[tuple[str, str], list[float]] = {}
    for name, labels, number in re.findall(r"^(ray_gradinversion_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if tags["run"] == run:
            found.setdefault((name, tags.get("seed", "")), []).append(float(number))
    return found


def wait_for(run: str, key: tuple[str, str], value: float) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(TRIES):
        found = samples(scrape(), run)
        if value in found.get(key, []):
            return found
        time.sleep(0.5)
    raise AssertionError(f"{key} never became {value}; the last scrape: {found}")


def start(run: str) -> Any:
    return ray.remote(num_cpus=0)(Observer).remote(run)


def test_every_metric_reaches_the_endpoint_under_its_documented_name_and_type() -> None:
    observer = start("first")
    ray.get(observer.observe.remote(STATUS))
    found = wait_for("first", ("ray_gradinversion_seed_gradient_loss", "3"), 0.1234)
    assert {name for name, _ in found} == {spec.exported_name for spec in METRICS}
    assert found["ray_gradinversion_seed_deaths_total", "3"] == [2]
    assert found["ray_gradinversion_seed_restarts_total", "3"] == [1]
    assert found["ray_gradinversion_round_seconds", ""] == [6.5]
    text = scrape()
    for spec in METRICS:
        assert f"# TYPE {spec.exported_name} {spec.type}\n" in text
    ray.kill(observer)


def test_counters_of_a_restarted_process_go_on_where_the_run_was() -> None:
    key = ("ray_gradinversion_seed_deaths_total", "3")
    observer = start("second")
    ray.get(observer.observe.remote(STATUS))
    wait_for("second", key, 2)
    ray.kill(observer)
    again = start("second")
    more = Status(4, 100, (SeedStatus(3, deaths=3),), round=2)
    ray.get(again.observe.remote(more))
    assert max(wait_for("second", key, 3)[key]) == 3
    ray.kill(again)


def test_values_stay_while_nothing_new_is_observed() -> None:
    """Ray forgets a gauge that was not set for 20 seconds, and a round may take longer."""
    observer = start("third")
    ray.get(observer.observe.remote(STATUS))
    key = ("ray_gradinversion_rounds_done", "")
    wait_for("third", key, 1)
    for _ in range(15):
        time.sleep(2)
        scrape()
    wait_for("third", key, 1)
    ray.kill(observer)

"""What Prometheus sees of a run, through the metrics endpoint that Ray opens on every node."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from enum import StrEnum

from ray.util.metrics import Counter, Gauge

from ..coordinator.status import SeedStatus, Status

PREFIX = "ray_"
"""Ray puts it before every name on the endpoint."""

# Ray sends a value on once, and forgets it after two of its report intervals of 10 s: shorter than many a round.
_REPEAT_SECONDS = 5.0


class MetricType(StrEnum):
    """Prometheus's own words."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True)
class MetricSpec:
    """One metric; ``name`` is without Ray's prefix."""

    name: str
    type: MetricType
    tags: tuple[str, ...]
    unit: str
    meaning: str

    @property
    def exported_name(self) -> str:
        """The name on the endpoint."""
        return PREFIX + self.name

    @property
    def help(self) -> str:
        """What the endpoint says of it."""
        return f"{self.meaning[0].upper()}{self.meaning[1:]} ({self.unit})."


_RUN = ("run",)
_SEED = ("run", "seed")
_GAUGE, _COUNTER = MetricType.GAUGE, MetricType.COUNTER

METRICS = (
    MetricSpec("gradinversion_seed_gradient_loss", _GAUGE, _SEED, "1", "gradient loss of the last candidate"),
    MetricSpec("gradinversion_seed_objective", _GAUGE, _SEED, "1", "weighted sum of all loss terms of that candidate"),
    MetricSpec("gradinversion_seed_steps", _GAUGE, _SEED, "steps", "steps that the seed has done"),
    MetricSpec(
        "gradinversion_seed_steps_per_second",
        _GAUGE,
        _SEED,
        "steps per second",
        "speed while it computed, in the last round",
    ),
    MetricSpec(
        "gradinversion_seed_staleness_periods", _GAUGE, _SEED, "periods", "how far it is behind the median seed"
    ),
    MetricSpec("gradinversion_seed_present", _GAUGE, _SEED, "0 or 1", "1 while the seed has a process"),
    MetricSpec("gradinversion_seed_restarts_total", _COUNTER, _SEED, "restarts", "restarts after it diverged"),
    MetricSpec("gradinversion_seed_deaths_total", _COUNTER, _SEED, "deaths", "times its process was lost"),
    MetricSpec("gradinversion_agents_present", _GAUGE, _RUN, "agents", "seeds that have a process"),
    MetricSpec("gradinversion_rounds_done", _GAUGE, _RUN, "rounds", "rounds finished"),
    MetricSpec("gradinversion_rounds_planned", _GAUGE, _RUN, "rounds", "rounds of the whole run"),
    MetricSpec("gradinversion_round_seconds", _GAUGE, _RUN, "seconds", "duration of the last round"),
    MetricSpec(
        "gradinversion_computing_ratio",
        _GAUGE,
        _RUN,
        "share, 0 to 1",
        "share of the last round that the slowest agent spent in optimisation steps",
    ),
    MetricSpec(
        "gradinversion_registration_rejected_ratio",
        _GAUGE,
        _RUN,
        "share, 0 to 1",
        "share of warps that registration refused in the last consensus",
    ),
    MetricSpec(
        "gradinversion_checkpoint_round",
        _GAUGE,
        _RUN,
        "round",
        "newest round with a whole checkpoint, counted from 0; -1 before one",
    ),
    MetricSpec(
        "gradinversion_checkpoint_timestamp_seconds",
        _GAUGE,
        _RUN,
        "seconds since 1970",
        "when that checkpoint was first seen; before one, when the run began",
    ),
)
"""All that `RunMetrics` exports."""


class RunMetrics:
    """The metrics of one run. Lives in the process that knows the status: the coordinator's.

    Values are exported again every few seconds until `close`, or the curves would have a gap in every long round.
    A counter of a new process begins at what the run has counted so far, not at 0: Ray adds the worker's id to each
    series, so each of them only grows, and the largest is the truth (see ``docs/metrics.md`` for the query).

    Args:
        run: Value of the tag ``run``; the same when the run continues, another for another run.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges = {spec.name: Gauge(spec.name, spec.help, spec.tags) for spec in METRICS if spec.type is _GAUGE}
        self._counters = {
            spec.name: Counter(spec.name, spec.help, spec.tags) for spec in METRICS if spec.type is _COUNTER
        }
        self._values: dict[tuple[str, int | None], float] = {}
        self._counted: dict[tuple[str, int], int] = {}
        self._saved: tuple[int, float] | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="run metrics", daemon=True)
        self._thread.start()

    def observe(self, status: Status) -> None:
        """Export where the run is: after every round, and when a seed is lost or comes back."""
        if self._saved is None or self._saved[0] != status.saved_round:
            self._saved = (status.saved_round, time.time() if status.saved_round >= 0 else status.began)
        values: dict[tuple[str, int | None], float | None] = {
            ("gradinversion_agents_present", None): sum(seed.present for seed in status.seeds),
            ("gradinversion_rounds_done", None): status.round,
            ("gradinversion_rounds_planned", None): status.rounds,
            ("gradinversion_round_seconds", None): status.round_seconds,
            ("gradinversion_computing_ratio", None): status.computing,
            ("gradinversion_registration_rejected_ratio", None): status.rejected,
            ("gradinversion_checkpoint_round", None): status.saved_round,
            ("gradinversion_checkpoint_timestamp_seconds", None): self._saved[1],
        }
        for seed in status.seeds:
            values |= {(name, seed.seed): value for name, value in _of_seed(seed).items()}
            self._count("gradinversion_seed_restarts_total", seed.incarnation, seed.seed)
            self._count("gradinversion_seed_deaths_total", seed.deaths, seed.seed)
        with self._lock:
            # Ray cannot export what is not finite; the curve has a gap there.
            self._values = {
                key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)
            }
            self._send()

    def close(self) -> None:
        """Export nothing any more; what was exported is gone from the endpoint within half a minute."""
        self._closed.set()

    def _repeat(self) -> None:
        while not self._closed.wait(_REPEAT_SECONDS):
            with self._lock:
                self._send()

    def _send(self) -> None:
        for (name, seed), value in self._values.items():
            self._gauges[name].set(value, self._tags(seed))

    def _count(self, name: str, total: int, seed: int) -> None:
        """Grow to a total. A smaller one (the run went back to an older checkpoint) leaves the counter as it is."""
        more = total - self._counted.get((name, seed), 0)
        if more > 0:
            self._counters[name].inc(more, self._tags(seed))
            self._counted[name, seed] = total

    def _tags(self, seed: int | None) -> dict[str, str]:
        return {"run": self._run} if seed is None else {"run": self._run, "seed": str(seed)}


def _of_seed(seed: SeedStatus) -> dict[str, float | None]:
    return {
        "gradinversion_seed_gradient_loss": seed.losses.get("gradient"),
        "gradinversion_seed_objective": seed.losses.get("total"),
        "gradinversion_seed_steps": seed.step,
        "gradinversion_seed_steps_per_second": seed.steps_per_second,
        "gradinversion_seed_staleness_periods": seed.behind,
        "gradinversion_seed_present": seed.present,
    }

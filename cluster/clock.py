"""How fast the seeds of a run descend, and how long it will take."""

from __future__ import annotations

import time

from ..agents import Outcome
from ..coordinator import Phase, SeedStatus, Status
from .pulse import clock_time

# How far one more measurement moves a smoothed value.
_NEWS = 0.3


class Clock:
    """Speeds and the time left: from the status, or from successive looks before the first round has ended."""

    def __init__(self) -> None:
        self._looked: float | None = None
        self._steps: dict[int, int] = {}
        self._measured: dict[int, float] = {}
        self._round = -1
        self._overhead = 1.0
        self._left: float | None = None
        self._doing, self._since = "", time.monotonic()

    def look(self, status: Status) -> None:
        """Take in one status."""
        now = time.monotonic()
        elapsed = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        if status.phase != self._doing:
            self._doing, self._since = status.phase, now
        for seed in status.seeds:
            done = seed.step - self._steps.get(seed.seed, seed.step)
            # A seed that began again went back; what it had done is no speed.
            if elapsed > 0 and done >= 0:
                rate = self._measured.get(seed.seed, 0.0)
                self._measured[seed.seed] = rate + (_NEWS if rate else 1.0) * (done / elapsed - rate)
        steps = {seed.seed: seed.step for seed in status.seeds}
        if status.round != self._round and status.computing > 0:
            overhead = 1 / status.computing
            # One round that waited for a lost agent says little about the others.
            self._overhead = overhead if self._round <= 0 else self._overhead + _NEWS * (overhead - self._overhead)
        if self._left is None or steps != self._steps or status.round != self._round:
            self._left = self._estimate(status)
        elif status.phase is not Phase.PAUSED:
            self._left = max(0.0, self._left - elapsed)
        self._round, self._steps = status.round, steps

    def rate(self, seed: SeedStatus) -> float:
        """Steps per second."""
        return seed.steps_per_second or self._measured.get(seed.seed, 0.0)

    def lasted(self) -> str:
        """Hours, minutes and seconds since the run, or this view of it, entered its phase."""
        return clock_time(time.monotonic() - self._since)

    def left(self) -> str:
        """Hours, minutes and seconds until the last seed has done its last step."""
        if self._left is None:
            return "…"
        return clock_time(self._left)

    def _estimate(self, status: Status) -> float | None:
        times = [
            (status.iterations - seed.step) / self.rate(seed) * (self._overhead if seed.steps_per_second else 1.0)
            for seed in status.seeds
            if seed.outcome is not Outcome.DROPPED and self.rate(seed) > 0
        ]
        return max(times, default=None)

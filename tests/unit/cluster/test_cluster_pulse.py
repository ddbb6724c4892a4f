"""Signs of life: a line after each stretch of silence, and none while others speak."""

from __future__ import annotations

import io
import threading
from dataclasses import replace

import pytest
from gradinversion.cluster.pulse import SILENCE_SECONDS, Activity, Pulse, clock_time
from gradinversion.cluster.view import ProgressView
from gradinversion.coordinator import Phase, SeedStatus, Status
from rich.console import Console


class Lines:
    """What was said, and a way to wait for it."""

    def __init__(self, wanted: int) -> None:
        self.lines: list[str] = []
        self.enough, self._wanted = threading.Event(), wanted

    def say(self, line: str) -> None:
        self.lines.append(line)
        if len(self.lines) >= self._wanted:
            self.enough.set()


def test_a_quiet_quarter_of_a_minute_is_none() -> None:
    assert SILENCE_SECONDS < 15


def test_silence_is_broken_again_and_again() -> None:
    found = Lines(3)
    with Pulse(found.say, lambda: "still preparing", silence=0.01):
        assert found.enough.wait(30)
    assert set(found.lines) == {"still preparing"}
    ended = len(found.lines)
    assert not threading.Event().wait(0.05)
    assert len(found.lines) == ended


def test_nothing_is_said_where_there_is_nothing_to_say() -> None:
    found, asked = Lines(1), threading.Event()

    def describe() -> str:
        asked.set()
        return ""

    with Pulse(found.say, describe, silence=0.01):
        assert asked.wait(30)
    assert not found.lines


def test_whoever_speaks_puts_the_next_line_off(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("gradinversion.cluster.pulse.time.monotonic", lambda: now[0])
    found = Lines(1)
    with Pulse(found.say, lambda: "late", silence=1000.0) as pulse:
        now[0] += 999
        pulse.heard()
        now[0] += 999
    assert not found.lines


def test_an_activity_tells_what_it_is_at_and_for_how_long() -> None:
    found = Lines(1)
    with Activity(found.say, silence=0.01) as activity:
        activity.begins("judging the images")
        assert found.enough.wait(30)
        activity.begins("")
    assert found.lines[0] == "judging the images (0:00:00)"


def test_hours_minutes_and_seconds() -> None:
    assert [clock_time(seconds) for seconds in (0, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]


def test_the_view_of_a_run_is_alive_before_and_between_its_lines() -> None:
    view = ProgressView(Console(file=io.StringIO(), force_terminal=False))
    assert view._alive() == "starting (0:00:00)"
    seeds = (SeedStatus(0, step=3), SeedStatus(1, step=5))
    status = Status(rounds=4, iterations=100, seeds=seeds, phase=Phase.PREPARING, detail="one place known")
    view(status)
    assert view._alive() == "reading labels and peeling layers: one place known (0:00:00)"
    view(replace(status, phase=Phase.OPTIMISING))
    assert view._alive() == "optimising (step 3–5 of 100, 0:00:00)"

"""What a person sees of a running attack."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from gradinversion.agents import Outcome
from gradinversion.cluster import ProgressView
from gradinversion.coordinator import Status
from rich.console import Console

LOSSES = {"gradient": 0.1234, "total_variation": 0.5, "total": 0.3}
STATUS = Status(
    rounds=4,
    iterations=100,
    seeds=(0, 1),
    phase="optimising",
    round=1,
    candidates=((0, 0, 25, LOSSES, Outcome.RUNNING), (1, 2, 25, LOSSES, Outcome.RUNNING)),
    steps=(30, 40),
)


def screen(terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=120, color_system=None), text


def test_plain_lines_tell_each_round_once() -> None:
    console, text = screen(terminal=False)
    with ProgressView(console) as view:
        view(replace(STATUS, phase="reading labels and peeling layers", round=0, candidates=(), steps=()))
        view(STATUS)
        view(STATUS)
        view(replace(STATUS, round=2, steps=(55, 60), messages=("Seed 1 failed; restart 1 of 2.",)))
        view(replace(STATUS, round=2, steps=(58, 66), messages=("Seed 1 failed; restart 1 of 2.",)))
    lines = text.getvalue().splitlines()
    assert lines[0] == "reading labels and peeling layers (2 agents)"
    assert sum(line.startswith("round 1/4: gradient loss 0.1234") for line in lines) == 1
    assert sum(line.startswith("round 2/4") for line in lines) == 1
    assert lines.count("Seed 1 failed; restart 1 of 2.") == 1
    assert "2 restarts" in next(line for line in lines if line.startswith("round 2/4"))


def test_a_terminal_gets_one_row_per_agent_with_losses_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr("gradinversion.cluster.view.time.monotonic", lambda: next(now))
    console, text = screen(terminal=True)
    view = ProgressView(console)
    view(replace(STATUS, steps=(10, 10)))
    view(replace(STATUS, steps=(30, 30)))
    console.print(view._table(STATUS))
    shown = text.getvalue()
    assert "round 1/4 · 2 restarts · time left 0:00:07" in shown
    assert "seed 0" in shown
    assert "seed 1" in shown
    assert "0.1234" in shown
    assert "total variation" in shown
    assert "10.0" in shown  # (30 - 10) steps in 2 seconds


def test_many_agents_are_summed_up() -> None:
    console, text = screen(terminal=True)
    seeds = tuple(range(40))
    console.print(ProgressView(console)._table(Status(rounds=1, iterations=10, seeds=seeds, steps=(3,) * 40)))
    assert "and 24 more agents" in text.getvalue()


def test_a_run_without_gradient_loss_is_shown_too() -> None:
    console, text = screen(terminal=False)
    with ProgressView(console) as view:
        view(replace(STATUS, candidates=((0, 0, 25, {"total_variation": 0.5}, Outcome.RUNNING),)))
    assert "round 1/4: " in text.getvalue()
    assert "gradient loss" not in text.getvalue()

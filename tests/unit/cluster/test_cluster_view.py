"""What a person sees of a running attack."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from gradinversion.agents import Outcome
from gradinversion.cluster.view import ProgressView
from gradinversion.coordinator import Event, EventKind, EventLog, Phase, SeedStatus, Status, Wait
from rich.console import Console

LOSSES = {"gradient": 0.1234, "total_variation": 0.5, "total": 0.3}
ALL_LOSSES = LOSSES | {"activation": 0.2, "batch_norm": 1.25, "group": 0.01}
SEEDS = (SeedStatus(0, step=25, losses=LOSSES), SeedStatus(1, step=25, incarnation=2, losses=LOSSES))
STATUS = Status(rounds=4, iterations=100, seeds=SEEDS, phase=Phase.OPTIMISING, round=1)
WAIT = Wait(Phase.PAUSED, 1, 2)


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("gradinversion.cluster.clock.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def screen(terminal: bool, width: int = 120) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=width, color_system=None), text


def shown(status: Status, width: int = 120) -> list[str]:
    """The live screen after one look."""
    view = ProgressView(screen(terminal=True, width=width)[0])
    view(status)
    console, text = screen(terminal=False, width=width)
    console.print(view._display.live.renderable)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def at(status: Status, *steps: int, **facts: Any) -> Status:
    seeds = tuple(replace(seed, step=step) for seed, step in zip(status.seeds, steps, strict=True))
    return replace(status, seeds=seeds, **facts)


def events(*texts: str) -> tuple[Event, ...]:
    """Facts, as the log of a run keeps them."""
    log = EventLog()
    for text in texts:
        log.note(EventKind.NOTE, text)
    return log.events()


def test_plain_lines_tell_each_round_once() -> None:
    console, text = screen(terminal=False)
    with ProgressView(console) as view:
        view(replace(STATUS, phase=Phase.PREPARING, round=0, seeds=(SeedStatus(0), SeedStatus(1))))
        view(STATUS)
        view(STATUS)
        view(at(STATUS, 55, 60, round=2, events=events("Seed 1 failed; restart 1 of 2.")))
        view(at(STATUS, 58, 66, round=2, events=events("Seed 1 failed; restart 1 of 2.")))
    lines = text.getvalue().splitlines()
    assert lines[0] == "reading labels and peeling layers (2 agents)"
    assert sum(line.startswith("round 1/4: gradient loss 0.1234, ") for line in lines) == 1
    assert sum(line.startswith("round 2/4") for line in lines) == 1
    assert lines.count("Seed 1 failed; restart 1 of 2.") == 1
    assert "2 restarts" in next(line for line in lines if line.startswith("round 2/4"))


def test_it_is_seen_how_far_the_preparation_is() -> None:
    console, text = screen(terminal=False)
    preparing = replace(STATUS, phase=Phase.PREPARING, round=0)
    with ProgressView(console) as view:
        view(preparing)
        view(replace(preparing, detail="one place known"))
        view(replace(preparing, detail="one place known"))
        view(replace(preparing, phase=Phase.OPTIMISING, detail="one place known"))
    assert text.getvalue().splitlines() == [
        "reading labels and peeling layers (2 agents)",
        "reading labels and peeling layers: one place known",
        "optimising (2 agents)",
    ]
    assert (
        shown(replace(preparing, detail="one place known"))[0] == "reading labels and peeling layers: one place known"
    )


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.PREPARING, Phase.WAITING])
def test_before_the_first_round_nobody_is_absent(phase: Phase) -> None:
    console, text = screen(terminal=False)
    seeds = (SeedStatus(0, present=False), SeedStatus(1, present=False))
    starting = replace(STATUS, phase=phase, round=0, seeds=seeds)
    with ProgressView(console) as view:
        view(starting)
    assert text.getvalue().splitlines()[0] == f"{phase.value} (2 agents)"
    lines = shown(starting)
    assert [line.split()[-1] for line in lines[-2:]] == ["starting", "starting"]
    assert "absent" not in "".join(lines)


def test_plain_lines_say_who_is_missing_and_why_it_waits() -> None:
    console, text = screen(terminal=False)
    lost = replace(STATUS, seeds=(SEEDS[0], replace(SEEDS[1], present=False)))
    with ProgressView(console) as view:
        view(lost)
        view(replace(lost, phase=Phase.PAUSED, wait=WAIT))
        view(replace(lost, phase=Phase.PAUSED, wait=WAIT))
    lines = text.getvalue().splitlines()
    assert lines[0] == "optimising (1 of 2 agents absent)"
    assert "1 of 2 agents absent" in lines[1]
    assert lines[2:] == ["paused: 1 of at least 2 agents is present, waiting for nodes"]


def test_a_terminal_gets_one_row_per_agent_with_losses_and_measured_speed(clock: Clock) -> None:
    console, _ = screen(terminal=True)
    view = ProgressView(console)
    view(at(STATUS, 10, 10))
    clock.now += 2
    view(at(STATUS, 30, 30))
    out, text = screen(terminal=False)
    out.print(view._display.live.renderable)
    head, facts, columns, *rows = text.getvalue().splitlines()
    assert head.strip() == "optimising"
    assert facts.startswith("round 1/4 · time left 0:00:07")
    assert columns.split() == ["agent", "step", "steps/s", "gradient", "TV", "total", "restarts", "state"]
    assert rows[0].split()[:3] == ["seed", "0", "30"]
    assert rows[0].split()[-5:] == ["10.0", "0.1234", "0.5000", "0.3000", "–"]  # (30 - 10) steps in 2 seconds
    assert rows[1].split()[-1] == "2"


def test_states_deaths_and_staleness_are_told_where_there_are_any() -> None:
    seeds = (
        replace(SEEDS[0], behind=1.5, steps_per_second=4.0),
        replace(SEEDS[1], deaths=3, present=False, steps_per_second=4.0),
        SeedStatus(2, outcome=Outcome.DROPPED, present=False),
        SeedStatus(3, step=100, outcome=Outcome.FINISHED),
    )
    lines = shown(replace(STATUS, seeds=seeds, saved_round=0))
    assert lines[1].endswith("saved up to round 1 · 1 of 4 absent")
    assert lines[2].split()[-3:] == ["restarts", "behind", "state"]
    assert lines[3].split()[-2:] == ["–", "1.5"]
    assert lines[4].endswith("5       –  absent, waiting for a node")
    assert "4.0" not in lines[4]
    assert lines[5].endswith("dropped")
    assert lines[6].endswith("done")


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_nothing_is_cut_however_narrow_the_terminal(width: int) -> None:
    seeds = tuple(
        SeedStatus(seed, 12_000, present=seed != 3, losses=ALL_LOSSES, steps_per_second=5.1, behind=0.5, deaths=1)
        for seed in range(40)
    )
    status = Status(200, 20_000, seeds, Phase.PAUSED, WAIT, 120, saved_round=118)
    lines = shown(status, width)
    assert all(len(line) <= width for line in lines)
    assert not any("…" in line for line in lines)
    rows = [line for line in lines if line.startswith("seed ")]
    assert len(rows) == 16
    assert all("12000" in row and "0.1234" in row for row in rows)
    assert ("total" in "".join(lines)) == (width >= 80)
    assert "absent" in rows[3]


def test_many_agents_are_summed_up_and_those_with_a_problem_have_a_row() -> None:
    seeds = tuple(SeedStatus(seed, step=3, losses=LOSSES, present=seed != 39) for seed in range(40))
    lines = shown(Status(rounds=1, iterations=10, seeds=seeds))
    assert lines[-1].startswith("and 24 more agents at step 3, gradient loss 0.1234, ")
    assert "seed 39" in lines[-2]
    assert len([line for line in lines if line.startswith("seed ")]) == 16


def test_a_run_without_gradient_loss_is_shown_too() -> None:
    console, text = screen(terminal=False)
    with ProgressView(console) as view:
        view(replace(STATUS, seeds=(SeedStatus(0, 25, losses={"total_variation": 0.5}),)))
    assert "round 1/4: " in text.getvalue()
    assert "gradient loss" not in text.getvalue()


def test_who_comes_to_a_running_attack_reads_the_last_of_the_past_alone() -> None:
    past = tuple(f"Fact {letter}." for letter in "abcdefghijklmnopqrstuvwxyz")
    console, text = screen(terminal=False)
    with ProgressView(console) as view:
        view(replace(STATUS, round=3, events=events(*past)))
        view(replace(STATUS, round=3, events=events(*past, "News.")))
    lines = text.getvalue().splitlines()
    assert lines[:11] == ["… and 16 earlier", *past[-10:]]
    assert [line for line in lines[11:] if "Fact" in line] == []
    assert lines[-1] == "News."
    assert sum(line.startswith("round") for line in lines) == 1


def test_an_event_that_goes_on_and_on_does_not_flood() -> None:
    log = EventLog()
    console, text = screen(terminal=False)
    with ProgressView(console) as view:
        view(STATUS)
        for round in range(1000):
            log.note(
                EventKind.AGENT_LOST,
                "{seed}: the process died; started again from round {round}.",
                seeds=[4],
                round=round,
            )
            view(replace(STATUS, events=log.events(), events_left_out=log.left_out))
    lines = [line for line in text.getvalue().splitlines() if "died" in line]
    assert lines[0] == "Seed 4: the process died; started again from round 0."
    assert len(lines) < 15
    assert lines[-1].endswith("from round 999. (1000 times, rounds 0 to 999)")


def test_events_that_are_no_longer_listed_are_counted_now_and_then() -> None:
    console, text = screen(terminal=False)
    with ProgressView(console) as view:
        view(STATUS)
        for number in range(1, 101):
            view(replace(STATUS, events=events("A fact."), events_left_out=number))
    lines = [line for line in text.getvalue().splitlines() if "no longer listed" in line]
    assert [int(line.split()[0]) for line in lines] == [1, 2, 3, 5, 9, 17, 33, 65, 100]
    assert text.getvalue().count("A fact.") == 1


def test_time_left_is_right_at_the_first_look_and_counts_down(clock: Clock) -> None:
    seeds = (
        SeedStatus(0, step=12_000, steps_per_second=10.0),
        SeedStatus(1, step=12_000, steps_per_second=5.0),
        SeedStatus(2, step=4_000, steps_per_second=5.0, outcome=Outcome.DROPPED),
    )
    status = Status(200, 20_000, seeds, Phase.OPTIMISING, None, 120, computing=0.8)
    console, _ = screen(terminal=True)
    view = ProgressView(console)
    view(status)
    assert view._clock.left() == "0:33:20"  # 8,000 steps at 5 per second, which is 80 % of the time
    clock.now += 20
    view(status)
    assert view._clock.left() == "0:33:00"
    clock.now += 3600
    view(replace(status, phase=Phase.PAUSED, wait=WAIT))
    assert view._clock.left() == "0:33:00"


def test_time_left_is_right_after_the_coordinator_went_back_to_a_checkpoint(clock: Clock) -> None:
    seeds = tuple(SeedStatus(seed, step=12_000, steps_per_second=5.0) for seed in range(2))
    status = Status(200, 20_000, seeds, Phase.OPTIMISING, None, 120, computing=1.0)
    console, text = screen(terminal=False)
    with ProgressView(console) as view:
        view(status)
        clock.now += 20
        view(at(replace(status, phase=Phase.STARTING), 0, 0, round=0))
        clock.now += 20
        view(at(status, 11_800, 11_800, round=118))
        assert view._clock.left() == "0:27:20"
        clock.now += 20
        view(at(status, 12_100, 12_100, round=121))
    lines = text.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("round")] == ["round 120/200", "round 121/200"]
    assert lines[-1].endswith("time left 0:26:20")


def test_one_slow_round_moves_the_time_left_only_in_part(clock: Clock) -> None:
    seeds = (SeedStatus(0, step=100, steps_per_second=10.0),)
    status = Status(200, 20_000, seeds, Phase.OPTIMISING, None, 1, computing=1.0)
    view = ProgressView(screen(terminal=True)[0])
    view(status)
    before = view._clock._left
    view(at(status, 200, round=2, computing=0.1))  # it waited for a lost agent
    assert before is not None
    assert view._clock._left is not None
    assert before < view._clock._left < 4 * before

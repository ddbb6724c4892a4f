"""What is no setting of the client is judged by its worst level, and never recommended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from gradinversion.capture import ClientConfig
from gradinversion.sweep.grid import Grid, make_grid
from gradinversion.sweep.kinds import Kind, kind_of
from gradinversion.sweep.outcomes import Effect
from gradinversion.sweep.results import CellResult, State
from gradinversion.sweep.verdict import GridVerdict, judge_grid

Settings = Any
Words = dict[str, str]
Judged = Callable[[Grid, Callable[[Words], int | None]], GridVerdict]
ATTACK = (
    "agents.count:4,1",
    "agents.iterations:1000,10",
    "objective.gradient_weight:1,0",
    "seed:0,1",
    "registration.method:coarse_to_fine,none",
    "peeling.enabled:true,false",
    "coordinator.period:100,50",
    "labels:auto,minimum",
)
DATA = (
    "client.images:photos,elsewhere",
    'client.labels:unique,"0,0,1,1"',
    "client.image_size:32,64",
    "client.classes:10,100",
    "client.learning_rate_known:true,false",
    "client.dp_steps:1000,5",
    "client.dp_delta:1e-5,1e-3",
)


@pytest.fixture
def judged(fakes: Any) -> Judged:
    """The verdict on made-up numbers of leaked images."""
    return lambda grid, leaked: judge_grid(grid, fakes.results(grid, leaked))


def small(settings: Settings, axis: str, *words: str) -> Grid:
    found: Grid = make_grid(
        settings("sweep.batch_sizes=4", "sweep.defences=none,noise:1", f"sweep.axes={axis}", *words)
    )
    return found


def effects(verdict: GridVerdict) -> dict[str, Effect]:
    return {change.name: change.effect for change in verdict.changes}


@pytest.mark.parametrize("axis", ATTACK + DATA)
def test_a_weaker_attack_or_other_data_is_no_protection(settings: Settings, judged: Judged, axis: str) -> None:
    key, _, levels = axis.partition(":")
    grid = small(settings, axis.replace('"0,0,1,1"', "0"))
    first = levels.partition(",")[0]
    # As in the issue: the leak is there at the first level alone, with and without the defence.
    verdict = judged(grid, lambda words: 3 if words[key] == first else 0)
    assert verdict.leaks
    assert "3 of 4 images leak in the worst case (" in verdict.headline
    assert effects(verdict) == {"noise 1": Effect.LEAKS}
    assert verdict.advice == "The one change in this grid was not shown to stop it."
    assert key in verdict.worst_case
    assert "none of these levels is offered as a change" in verdict.worst_case


def test_what_stops_the_leak_must_stop_every_attack(settings: Settings, judged: Judged) -> None:
    grid = small(settings, "agents.count:4,1")
    verdict = judged(grid, lambda words: 3 if words["client.defence"] == "none" and words["agents.count"] == "4" else 0)
    assert verdict.headline == (
        "At your settings (batch 4, no defence, eval BN, untrained) 3 of 4 images leak in the worst case "
        "(count 4: 3 of 4; count 1: 0 of 4)"
    )
    assert effects(verdict) == {"noise 1": Effect.STOPS}
    assert verdict.advice.startswith("The smallest change that stops the image leak: noise 1 (")


def test_the_users_settings_leak_where_the_strongest_attack_sees_them(settings: Settings, judged: Judged) -> None:
    grid = small(settings, "agents.count:1,4", "agents.count=1")
    verdict = judged(grid, lambda words: 2 if words["client.defence"] == "none" and words["agents.count"] == "4" else 0)
    assert verdict.leaks
    assert "(count 1: 0 of 4; count 4: 2 of 4)" in verdict.headline


def test_an_attack_that_was_not_run_proves_nothing(settings: Settings, judged: Judged) -> None:
    grid = small(settings, "agents.count:4,1")
    verdict = judged(
        grid,
        lambda words: 3 if words["client.defence"] == "none" else None if words["agents.count"] == "1" else 0,
    )
    assert effects(verdict) == {"noise 1": Effect.UNKNOWN}
    calm = judged(grid, lambda words: None if words["agents.count"] == "1" else 0)
    assert calm.leaks is None
    assert "not all is known" in calm.headline
    assert calm.advice == "The cell of these settings (count 1) was not run."


def test_a_failed_level_is_named(settings: Settings, fakes: Any) -> None:
    grid = small(settings, "seed:0,1")
    known = fakes.results(grid, lambda words: 0)
    last = next(cell for cell in grid.cells if cell.title == "batch 4, no defence, seed 1, eval BN, untrained")
    known[last.name] = CellResult(State.FAILED, "all seeds diverged")
    assert judge_grid(grid, known).advice == "The cell of these settings (seed 1) failed: all seeds diverged"


def test_labels_are_those_of_the_worst_level_too(settings: Settings, fakes: Any) -> None:
    grid = small(settings, "seed:0,1")
    known = fakes.results(grid, fakes.leak_undefended)
    for cell in grid.cells:
        known[cell.name] = replace(known[cell.name], labels=0.25 if "seed 0" in cell.title else 1.0)
    assert "100% of the labels are still recovered" in judge_grid(grid, known).advice


def test_states_data_and_attacks_are_crossed(settings: Settings, judged: Judged) -> None:
    words = "client.image_size:32,64,agents.count:4,1"
    grid = make_grid(settings("sweep.batch_sizes=4", "sweep.states=untrained,net.pt", f"sweep.axes={words}"))
    worst = {"client.weights": "net.pt", "client.image_size": "64", "agents.count": "1"}
    verdict = judged(grid, lambda words: 1 if worst.items() <= words.items() else 0)
    assert effects(verdict) == {"noise 0.1": Effect.LEAKS, "noise 1": Effect.LEAKS}
    assert verdict.headline.endswith(
        "1 of 4 images leak in the worst of the 8 cells that have a result at these settings"
    )
    for part in ("the model's state", "client.image_size (what the data", "agents.count (how the server attacks)"):
        assert part in verdict.worst_case
    # The base of all axes is still the first cell, and the user's settings are all run before others.
    assert grid.cells[0].levels == grid.base
    assert [bool(grid.changes(cell.levels)) for cell in grid.cells] == [False] * 8 + [True] * 16


def test_without_such_axes_no_word_is_lost_on_them(settings: Settings, judged: Judged) -> None:
    assert judged(make_grid(settings()), lambda words: 1).worst_case == ""


def test_what_a_client_computes_and_sends_is_a_setting_and_nothing_else_is() -> None:
    settings = {"model", "batch_size", "bn", "local_epochs", "local_batch_size", "learning_rate", "momentum"}
    settings |= {"weight_decay", "shuffled", "defence", "defence_strength", "defence_clip", "clients"}
    names = {field.name for field in fields(ClientConfig)}
    assert settings <= names
    found = {name for name in names if kind_of(f"client.{name}").is_setting}
    assert found == settings
    assert kind_of("client.images") is Kind.DATA
    assert {kind_of(axis.partition(":")[0]) for axis in ATTACK} == {Kind.ATTACK}
    assert {kind_of(axis.partition(":")[0]) for axis in DATA} == {Kind.DATA}


def test_more_clients_are_a_change_and_their_images_are_told(settings: Settings, judged: Judged) -> None:
    grid = small(settings, "client.clients:1,2")
    verdict = judged(grid, lambda words: 3 if words["client.clients"] == "1" else 0)
    assert verdict.advice.startswith("The smallest change that stops the image leak: clients 2 (")
    fixed = make_grid(settings("sweep.batch_sizes=4", "sweep.defences=none", "client.clients=2"))
    assert (
        "(batch 4, no defence, eval BN, untrained, 2 clients with a batch each)" in judged(fixed, lambda w: 1).headline
    )

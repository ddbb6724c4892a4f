"""The order of an audit, with cells that cost nothing in place of attacks on Ray."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gradinversion.cluster import Ended, Job
from gradinversion.coordinator import Storage
from gradinversion.refusal import ConfigError
from gradinversion.settings.run import RunConfig, config_yaml
from gradinversion.sweep import audit as module
from gradinversion.sweep import planning
from gradinversion.sweep.accuracy import Accuracy
from gradinversion.sweep.budget import Cost
from gradinversion.sweep.results import CellResult, save_result
from gradinversion.sweep.verdict import GridVerdict
from rich.console import Console

Settings = Any


class Cells:
    """Runs jobs one after the other, in this process, and does what it was told to for some of them."""

    def __init__(self, fakes: Any) -> None:
        self.fakes = fakes
        self.ran: list[str] = []
        self.before: Callable[[RunConfig], object] = lambda config: None
        self.seconds = 0.0

    def side_by_side(self, jobs: Iterable[Job], at_once: int, look: Any = None) -> Iterator[Ended]:
        for job in jobs:
            try:
                yield Ended(job.name, job.work(*job.arguments, lambda state: None), about=job.about)
            except ValueError as error:
                yield Ended(job.name, problem=str(error), details="Traceback: …", about=job.about)

    def run_cell(self, config: RunConfig, tell: object) -> CellResult:
        self.before(config)
        client = config.client
        self.ran.append(f"{client.batch_size} {client.defence} {client.defence_strength:g}")
        result: CellResult = self.fakes.done(0 if client.defence_strength else client.batch_size, client.batch_size)
        result = replace(result, iterations=config.agents.iterations)
        storage = Storage(config.out)
        storage.write("config.yaml", config_yaml(config).encode())
        save_result(storage, result)
        return result


@pytest.fixture
def cells(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> Cells:
    found = Cells(fakes)
    monkeypatch.setattr(module, "connected", lambda store_bytes: contextlib.nullcontext(False))
    monkeypatch.setattr(module, "available_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(module, "run_side_by_side", found.side_by_side)
    monkeypatch.setattr(planning, "run_side_by_side", found.side_by_side)
    monkeypatch.setattr(module, "run_cell", found.run_cell)
    monkeypatch.setattr(planning, "calibrate", lambda config, tell: Cost(1.0, 0.01))
    return found


def run(config: RunConfig) -> tuple[GridVerdict, str]:
    text = io.StringIO()
    verdict = module.run_audit(config, Console(file=text, width=200, color_system=None))
    return verdict, text.getvalue()


def numbers(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(config.out) / "audit.json").read_text())
    return found


def states(config: RunConfig) -> list[str]:
    return [cell["state"] for cell in numbers(config)["cells"]]


def test_all_cells_are_run_the_users_own_first(settings: Settings, cells: Cells) -> None:
    config = settings()
    verdict, _ = run(config)
    assert cells.ran[0] == "4 none 0"
    assert len(cells.ran) == 6
    assert verdict.advice.startswith("The smallest change that stops the image leak: noise 0.1 (")
    assert states(config) == ["done"] * 6


def test_a_cell_that_fails_stops_no_other(settings: Settings, cells: Cells) -> None:
    def refuse(config: RunConfig) -> None:
        if config.client.defence_strength == 1:
            raise ValueError("the batch is cursed")

    cells.before = refuse
    config = settings("sweep.batch_sizes=4,16")
    _, text = run(config)
    assert sorted(states(config)) == ["done"] * 2 + ["failed"] * 4
    assert "batch 4, noise 1, eval BN, untrained: failed: the batch is cursed" in text
    (error,) = Path(config.out).glob("cells/*/error.txt")
    assert error.read_text() == "Traceback: …"


def test_taken_up_again_only_what_is_missing_is_run(settings: Settings, cells: Cells) -> None:
    run(settings())
    cells.ran.clear()
    run(settings("resume=true"))
    assert cells.ran == []
    run(settings("resume=true", "sweep.defences=none,noise:0.1,noise:1,prune:0.9"))
    assert cells.ran == ["4 prune 0.9", "8 prune 0.9"]
    cells.ran.clear()
    run(settings("resume=true", "agents.iterations=50"))
    assert len(cells.ran) == 6


def test_begun_anew_everything_is_run_again_for_who_says_so(settings: Settings, cells: Cells) -> None:
    run(settings())
    with pytest.raises(ConfigError, match="holds the cells of an audit: resume=true"):
        run(settings())
    assert len(cells.ran) == 6
    run(settings("restart=true"))
    assert len(cells.ran) == 12


def test_interrupted_the_page_has_what_is_finished_and_the_rest_comes_later(settings: Settings, cells: Cells) -> None:
    def interrupt(config: RunConfig) -> None:
        if len(cells.ran) == 2:
            raise KeyboardInterrupt

    cells.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(settings())
    assert states(settings()) == ["done", "done", "waiting", "waiting", "waiting", "waiting"]
    cells.before = lambda config: None
    run(settings("resume=true"))
    assert len(cells.ran) == 6
    assert states(settings()) == ["done"] * 6


def test_a_budget_shortens_the_attacks_and_says_so(settings: Settings, cells: Cells) -> None:
    config = settings("budget=4m")
    run(config)
    found = numbers(config)
    (iterations,) = {cell["iterations"] for cell in found["cells"]}
    assert 250 <= iterations < 1000
    assert any("steps instead of 1,000" in note for note in found["notes"])
    cells.ran.clear()
    run(settings("budget=4m", "resume=true"))
    assert cells.ran == []


def test_measuring_takes_no_more_than_its_share_of_the_budget(
    settings: Settings, cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, measured = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def measure(config: RunConfig, tell: object) -> Cost:
        measured.append(config.client.batch_size)
        now[0] += seconds
        return Cost(1.0, 0.001)

    monkeypatch.setattr(planning, "calibrate", measure)
    words = ("sweep.batch_sizes=1,2,3,4,5,6,7,8", "budget=10m")
    seconds = 10
    run(settings(*words))
    assert measured == [4, 8, 1]
    measured.clear()
    seconds = 100
    run(settings(*words, "restart=true"))
    assert measured == [4]


def test_a_short_budget_leaves_cells_out_but_never_the_users_own(settings: Settings, cells: Cells) -> None:
    config = settings("budget=20s")
    run(config)
    assert cells.ran[0] == "4 none 0"
    assert states(config).count("not run") > 0
    assert "It does not fit budget=20s." in numbers(config)["cells"][-1]["sentence"]


def test_cells_that_take_longer_than_estimated_leave_no_time_for_the_last(
    settings: Settings, cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def slow(config: RunConfig) -> None:
        now[0] += 300

    cells.before = slow
    config = settings("budget=10m")
    run(config)
    assert len(cells.ran) < 6
    assert states(config) == ["done"] * len(cells.ran) + ["not run"] * (6 - len(cells.ran))
    assert "was used up" in numbers(config)["cells"][-1]["sentence"]


def test_every_defence_is_priced_at_the_users_settings(
    settings: Settings, cells: Cells, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[tuple[int, str]] = []

    def train(config: RunConfig, folder: str, steps: int, tell: object) -> Accuracy:
        trained.append((config.client.batch_size, config.client.defence))
        if config.client.defence_strength == 1:
            raise ValueError("no such luck")
        return Accuracy((0.9 - config.client.defence_strength,), steps, 4, 80, 20, 0.5, 0.02)

    monkeypatch.setattr(module, "train_and_test", train)
    words = (f"sweep.train_images={tmp_path}", "sweep.defences=noise:0.1,noise:1")
    config = settings(*words)
    run(config)
    assert trained == [(4, "noise"), (4, "noise"), (4, "none")]
    found = numbers(config)
    assert found["accuracy_problems"] == {"noise 1": "no such luck"}
    assert {name: one["mean"] for name, one in found["accuracy"].items()} == {
        "noise 0.1": pytest.approx(0.8),
        "no defence": 0.9,
    }
    trained.clear()
    run(settings(*words, "resume=true"))
    assert trained == [(4, "noise")]


def test_a_model_without_batch_norm_has_one_mode(
    settings: Settings, cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import nn

    monkeypatch.setattr(module, "load_model", lambda *arguments: nn.Linear(2, 2))
    config = settings("sweep.bn=eval,train_private", "sweep.batch_sizes=4", "sweep.defences=none")
    run(config)
    assert cells.ran == ["4 none 0"]
    assert any("no batch norm" in note for note in numbers(config)["notes"])


def test_a_grid_without_a_good_cell_writes_nothing(settings: Settings, cells: Cells, tmp_path: Path) -> None:

    with pytest.raises(ConfigError):
        run(settings("sweep.batch_sizes=16"))
    assert not (tmp_path / "out").exists()

"""One cell from its settings to its result, attacked in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gradinversion.coordinator import Phase, Reconstruction, SeedStatus, Status, Storage
from gradinversion.coordinator.serial_group import attack
from gradinversion.settings.folder import read_settings
from gradinversion.settings.run import RunConfig
from gradinversion.sweep import cell as module
from gradinversion.sweep.cell import Progress, finished, run_cell
from gradinversion.sweep.grid import make_grid
from gradinversion.sweep.results import State, load_result

Settings = Callable[..., RunConfig]
LOOK = Status(1, 4, (SeedStatus(0, 3, losses={"gradient": 0.5}), SeedStatus(1, 2)), Phase.OPTIMISING)


@pytest.fixture
def small(settings: Settings) -> RunConfig:
    words = ("client.batch_size=2", "client.image_size=16", "agents.count=1", "agents.iterations=4")
    cell = make_grid(settings(*words, "sweep.batch_sizes=2", "sweep.defences=none")).cells[0]
    assert cell.config is not None
    return cell.config


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """The folders of the attacks, and whether each is to go on; without Ray."""
    done: list[tuple[str, bool]] = []

    def reconstruct(update: Any, model: Any, config: Any, **given: Any) -> Reconstruction:
        assert given["detach"] is False
        done.append((str(given["out"]), given["resume"]))
        Storage(given["out"]).write("mark", b"")
        given["watch"](LOOK)
        return attack(update, model, config).reconstruction

    monkeypatch.setattr(module, "reconstruct", reconstruct)
    return done


def test_a_cell_is_attacked_controlled_judged_and_written(small: RunConfig, attacks: list[tuple[str, bool]]) -> None:
    told: list[Progress] = []
    result = run_cell(small, told.append)
    out = Path(small.out)
    assert [Path(folder).relative_to(out).as_posix() for folder, _ in attacks] == [
        ".",
        "controls/no_gradient",
        "controls/other_images",
        "controls/one_agent",
    ]
    assert not any(resume for _, resume in attacks)
    phases = dict.fromkeys(progress.phase for progress in told)
    controls = ("no gradient", "other images' gradient", "one agent")
    assert list(phases) == ["client", "attack", *(f"control: {name}" for name in controls), "judging"]
    assert [(one.step, one.steps, one.gradient_loss) for one in told if one.steps] == [(2, 4, 0.5)] * 4
    assert (result.state, result.images, result.problems) == (State.DONE, 2, ())
    assert (result.agents, result.iterations) == (1, 4)
    assert load_result(Storage(out)) == result == finished(small)
    assert read_settings(Storage(out)) == small
    assert (out / "report.html").exists()
    assert (out / "mark").exists()
    assert not (out / "controls" / "one_agent" / "mark").exists()


def test_a_cell_that_was_begun_goes_on_and_so_do_its_controls(
    small: RunConfig, attacks: list[tuple[str, bool]]
) -> None:
    run_cell(small, lambda progress: None)
    attacks.clear()
    run_cell(small, lambda progress: None)
    assert [resume for _, resume in attacks] == [True] * 4


def test_a_cell_goes_on_without_a_pool_that_cannot_be_had_and_says_so(
    settings: Settings, attacks: list[tuple[str, bool]], tmp_path: Path
) -> None:
    words = ("client.batch_size=1", "client.image_size=16", "agents.count=1", "agents.iterations=4")
    grid = make_grid(settings(*words, "sweep.batch_sizes=1", "sweep.defences=none", f"audit.pool={tmp_path}/none"))
    assert grid.cells[0].config is not None
    result = run_cell(grid.cells[0].config, lambda progress: None)
    assert result.state is State.DONE
    pool, control = result.problems
    assert f"{tmp_path}/none" in pool
    assert control.startswith("Control “other images' gradient”: ")
    assert len(attacks) == 3

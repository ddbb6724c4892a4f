from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gradinversion.audit import ControlScore, ImageResult
from gradinversion.coordinator import Source, Storage
from gradinversion.settings.run import RunConfig, config_yaml, load_config
from gradinversion.sweep.budget import Plan
from gradinversion.sweep.cell import finished, forget
from gradinversion.sweep.grid import make_grid
from gradinversion.sweep.placing import Placing
from gradinversion.sweep.planning import PlanStore, whole, with_effort
from gradinversion.sweep.results import CellResult, State, Worst, load_result, save_result
from gradinversion.sweep.worst import find_risk

Settings = Any


def cell_config(settings: Settings, *words: str) -> RunConfig:
    config = make_grid(settings(*words)).cells[0].config
    assert config is not None
    return config


def finish(config: RunConfig, result: CellResult) -> None:
    storage = Storage(config.out)
    storage.write("config.yaml", config_yaml(config).encode())
    save_result(storage, result)


def test_a_result_comes_back_as_it_was(fakes: Any, tmp_path: Path) -> None:
    result = replace(fakes.done(2), problems=("a control failed",), versions={"torch": "2"})
    save_result(Storage(tmp_path), result)
    assert load_result(Storage(tmp_path)) == result


def test_a_result_of_before_class_presence_and_counts_were_kept_still_counts(fakes: Any, tmp_path: Path) -> None:
    save_result(Storage(tmp_path), fakes.done(2))
    content = json.loads((tmp_path / "cell.json").read_text())
    del content["label_scores"]
    (tmp_path / "cell.json").write_text(json.dumps(content))
    assert load_result(Storage(tmp_path)) == replace(fakes.done(2), label_scores=None)
    content["label_scores"] = {"precision": 1.0}
    (tmp_path / "cell.json").write_text(json.dumps(content))
    assert load_result(Storage(tmp_path)) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"state": "gone", "problems": []}', b"\xff", b'{"state": 1}'])
def test_a_torn_or_hostile_result_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cell.json").write_bytes(content)
    assert load_result(Storage(tmp_path)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"leaked": "all"},
        {"images": 10**400},
        {"versions": {"torch": {}}},
        {"problems": [[1]]},
        {"worst": {"original": "http://elsewhere/a.png"}},
        {"worst": {"reconstruction": "file:///etc/passwd"}},
        {"worst": {"control": "//elsewhere/a.png"}},
    ],
)
def test_a_result_of_other_types_or_with_pictures_elsewhere_is_none(
    fakes: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    worst = Worst("a.png", "data:image/png;base64,AA==", "data:image/png;base64,AA==", 31.5, None, "none", 12.0)
    save_result(Storage(tmp_path), replace(fakes.done(2), worst=worst))
    assert load_result(Storage(tmp_path)) is not None
    content = json.loads((tmp_path / "cell.json").read_text())
    for name, value in change.items():
        content[name] = content[name] | value if name == "worst" else value
    (tmp_path / "cell.json").write_text(json.dumps(content))
    assert load_result(Storage(tmp_path)) is None


def test_deep_nesting_is_none(tmp_path: Path) -> None:
    for name in ("cell.json", "plan.json"):
        (tmp_path / name).write_bytes(b"[" * 100_000)
    assert load_result(Storage(tmp_path)) is None
    assert PlanStore(Storage(tmp_path), load_config([])).load() is None


def test_a_finished_cell_counts_for_its_settings_alone(settings: Settings, fakes: Any) -> None:
    config = cell_config(settings)
    assert finished(config) is None
    finish(config, fakes.done(1))
    assert finished(config) == fakes.done(1)
    assert finished(replace(config, agents=replace(config.agents, threads=9, cpus=0.5))) == fakes.done(1)
    assert finished(replace(config, agents=replace(config.agents, iterations=9))) is None
    assert finished(replace(config, audit=replace(config.audit, pool="other"))) is None


def test_a_cell_that_begins_anew_is_not_finished(settings: Settings, fakes: Any) -> None:
    config = cell_config(settings)
    finish(config, fakes.done(1))
    forget(config)
    assert finished(config) is None
    forget(config)


def test_a_cell_of_which_the_settings_are_torn_is_run_again(settings: Settings, fakes: Any) -> None:
    config = cell_config(settings)
    finish(config, fakes.done(1))
    (Path(config.out) / "config.yaml").write_text("out: [")
    assert finished(config) is None


def test_the_share_is_of_the_images_that_can_be_judged(fakes: Any) -> None:
    assert fakes.done(1, images=4).share == 0.25
    assert replace(fakes.done(1, images=4), unknown=2).share == 0.5
    assert replace(fakes.done(0, images=4), unknown=4).share is None
    assert CellResult(State.FAILED, "why").share is None


def test_an_audit_that_goes_on_keeps_its_plan(settings: Settings, tmp_path: Path) -> None:
    storage, config = Storage(tmp_path), settings("budget=10m")
    plan = Plan(250, 2, ("a", "b"), {"a": 1.5, "b": 2.0}, ("fewer steps",))
    PlanStore(storage, config).save(plan, 3)
    assert PlanStore(storage, replace(config, resume=True, out="elsewhere")).load() == (plan, 3)
    for place in ("coordinator.save_every=1m", "agents.minimum=1", "agents.patience=5"):
        assert PlanStore(storage, settings("budget=10m", place)).load() == (plan, 3)
    assert PlanStore(storage, settings("budget=20m")).load() is None
    assert PlanStore(storage, settings("budget=10m", "agents.iterations=9")).load() is None
    content = json.loads((tmp_path / "plan.json").read_text())
    for change in ({"threads": math.inf}, {"threads": "3"}, {"plan": content["plan"] | {"kept": [7]}}):
        (tmp_path / "plan.json").write_text(json.dumps(content | change))
        assert PlanStore(storage, config).load() is None
    (tmp_path / "plan.json").write_text("{}")
    assert PlanStore(storage, config).load() is None


def test_the_plan_without_a_budget_is_everything(settings: Settings) -> None:
    config = settings("sweep.batch_sizes=4,16")
    plan = whole(make_grid(config), config)
    assert (plan.iterations, plan.agents, len(plan.kept)) == (1000, 4, 3)


def test_a_cell_gets_the_effort_of_the_plan_and_a_place(settings: Settings) -> None:
    config = settings("agents.minimum=4")
    cell = cell_config(settings, "agents.minimum=4")
    placing = Placing(1, cpus=0.5, gpus=0.0, threads=2)
    found = with_effort(cell, config, Plan(250, 2, (), {}), placing, 3).agents
    assert (found.iterations, found.count, found.minimum, found.threads, found.cpus) == (250, 2, 2, 3, 0.5)
    same = with_effort(cell, config, Plan(1000, 4, (), {}), placing, 3).agents
    assert (same.iterations, same.count) == (1000, 4)


def test_an_axis_of_steps_is_shortened_in_proportion(settings: Settings) -> None:
    config = settings()
    cell = replace(cell_config(settings), agents=replace(config.agents, iterations=400, count=1))
    found = with_effort(cell, config, Plan(250, 2, (), {}), Placing(1, 0.5, 0.0, 1), 1).agents
    assert (found.iterations, found.count) == (100, 1)


def test_a_flat_image_is_never_the_one_that_leaked_most() -> None:
    constant = {"constant_image": ControlScore(math.inf), "no_gradient": ControlScore(12.0)}
    flat = ImageResult(0, 0, "flat", 0, 0, 1.0, Source(), 1.0, psnr=40.0, constant_image_psnr=math.inf)
    flat = replace(flat, controls=constant)
    risk = find_risk(flat)
    assert (risk.lead, risk.level) == (None, "unknown")
    near = replace(flat, constant_image_psnr=80.0, controls={"constant_image": ControlScore(80.0)})
    assert find_risk(near).lead is None
    plain = replace(flat, constant_image_psnr=15.0, controls={"constant_image": ControlScore(15.0)})
    assert find_risk(plain).lead == pytest.approx(25.0)

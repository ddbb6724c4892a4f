from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from gradinversion.capture import simulate_client
from gradinversion.coordinator.serial_group import attack
from gradinversion.exporting import FORMATS, export, require_packages
from gradinversion.exporting import formats as formats_module
from gradinversion.exporting.run_files import MOST_SEEDS, ExportError
from gradinversion.exporting.tables import table
from gradinversion.settings.offered import EXPORTS
from gradinversion.settings.run import load_config
from gradinversion.storage.folders import Storage

ROWS = [
    {"schema_version": 1, "round": 0, "seed": 0, "incarnation": 0, "step": 50, "gradient": 0.5, "total": 0.75},
    {"schema_version": 1, "round": 0, "seed": 3, "incarnation": 0, "step": 50, "gradient": 0.25, "total": None},
    {"schema_version": 1, "round": 1, "seed": 0, "incarnation": 1, "step": 100, "gradient": 1e-12, "group": 2.0},
]
IMAGES = [
    {"name": "=cmd()", "psnr": 31.5, "label": {"true": 3, "found": None}, "places": [1, 2]},
    {"name": "a, b.png", "psnr": None},
]


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "report.json").write_text(json.dumps({"psnr_mean": 31.5, "leak": "leaked", "images": IMAGES}))
    return Storage(tmp_path)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_every_number_and_leave_what_is_missing_empty(run: Storage) -> None:
    assert export(run, ["csv"]) == ["curves.csv", "images.csv"]
    rows = read(run.path / "curves.csv")
    assert [float(row["gradient"]) for row in rows] == [0.5, 0.25, 1e-12]
    assert [row["total"] for row in rows] == ["0.75", "", ""]
    assert [row["group"] for row in rows] == ["", "", "2.0"]
    images = read(run.path / "images.csv")
    assert images[0] == {"name": "'=cmd()", "psnr": "31.5", "label.true": "3", "label.found": ""}
    assert images[1]["name"] == "a, b.png"


def test_curves_are_exported_as_a_run_writes_them(tmp_path: Path) -> None:
    config = load_config(["agents.count=1", "agents.iterations=2", "client.batch_size=1", "peeling.enabled=false"])
    update, model, _ = simulate_client(config.client, 0)
    history = attack(update, model, config).reconstruction.history
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    assert export(Storage(tmp_path), ["csv"]) == ["curves.csv"]
    assert [row["step"] for row in read(tmp_path / "curves.csv")] == ["1", "2"]


def test_a_grid_has_a_table_of_its_cells(tmp_path: Path) -> None:
    cells = [{"name": "b=1", "leaked": 1, "levels": {"batch": "1"}}, {"name": "b=8", "leaked": 0}]
    (tmp_path / "audit.json").write_text(json.dumps({"cells": cells}))
    assert export(Storage(tmp_path), ["csv"]) == ["cells.csv"]
    assert [(row["name"], row["leaked"], row["levels.batch"]) for row in read(tmp_path / "cells.csv")] == [
        ("b=1", "1", "1"),
        ("b=8", "0", ""),
    ]
    with pytest.raises(ExportError, match="no loss curves for export=wandb"):
        export(Storage(tmp_path), ["csv", "wandb"])


def test_tensorboard_reads_the_curves_back(run: Storage) -> None:
    accumulation = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert export(run, ["tensorboard"]) == ["tensorboard"]
    assert sorted(path.name for path in (run.path / "tensorboard").iterdir()) == ["seed-0", "seed-3"]
    found = accumulation.EventAccumulator(str(run.path / "tensorboard" / "seed-0"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"gradient", "total", "group"}
    scalars = [(event.step, event.value) for event in found.Scalars("gradient")]
    assert scalars == [(50, 0.5), (100, pytest.approx(1e-12))]


def test_a_second_export_to_tensorboard_replaces_the_first(run: Storage) -> None:
    accumulation = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for _ in range(2):
        export(run, ["tensorboard"])
    found = accumulation.EventAccumulator(str(run.path / "tensorboard" / "seed-0"))
    found.Reload()
    assert len(found.Scalars("gradient")) == 2
    assert len(list((run.path / "tensorboard" / "seed-0").iterdir())) == 1


@pytest.mark.filterwarnings("default")  # of packages that wandb brings
def test_a_run_for_weights_and_biases_lies_on_this_machine_and_names_no_file_of_it(
    run: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # whoever asked would not be answered
    assert export(run, ["wandb"]) == ["wandb"]
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    (record,) = folder.glob("*.wandb")
    content = record.read_bytes()
    for word in (b"seed-3/gradient", b"psnr_mean", b"31.5"):
        assert word in content, word
    assert b"cmd()" not in content
    # Nor what the library says of its own work, or of what is installed here.
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [record.name]
    assert [path.name for path in (run.path / "wandb").iterdir()] == [folder.name]


def test_a_link_in_a_strangers_folder_is_not_followed(run: Storage, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("wandb")
    others = tmp_path_factory.mktemp("others")
    (others / "debug.log").write_text("precious")
    (run.path / "wandb").symlink_to(others)
    with pytest.raises(ExportError, match="is no folder: remove it"):
        export(run, ["wandb"])
    assert [path.name for path in others.iterdir()] == ["debug.log"]
    (run.path / "wandb").unlink()
    (run.path / "wandb").write_text("a file")
    with pytest.raises(ExportError, match="is no folder: remove it"):
        export(run, ["wandb"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.jsonl", "{}\n", "line 1 of .* whole numbers for round, seed, step"),
        ("metrics.jsonl", '{"round": 0, "seed": 0, "step": 1, "total": "high"}', "no number"),
        ("metrics.jsonl", '{"round": 0, "seed": 0, "step": 1, "total": 1' + "0" * 400 + "}", "no number"),
        ("metrics.jsonl", '{"round": 0, "seed": true, "step": 1}', "whole numbers"),
        ("metrics.jsonl", '{"round": 0, "seed": 0, "step": 1.5}', "whole numbers"),
        ("metrics.jsonl", '{"round": 0, "seed": 0, "step": 1e400}', "whole numbers"),
        ("metrics.jsonl", "no json", "whole numbers"),
        ("metrics.jsonl", "[" * 200_000, "whole numbers"),
        ("metrics.jsonl", '{"round": 0, "seed": 0, "step": 1000000000000000000000000000000}', "whole numbers"),
        ("metrics.jsonl", '{"round": 0, "seed": -1, "step": 1}', "whole numbers"),
        ("report.json", "[" * 200_000, "no JSON object"),
        ("report.json", "[1]", "no JSON object"),
        ("audit.json", "{", "no JSON object"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ExportError, match=words):
        export(Storage(tmp_path), ["csv"])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_names_that_no_file_can_hold_are_written_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"images": [{"name": "\\ud800x"}]}')
    assert export(Storage(tmp_path), ["csv"]) == ["images.csv"]
    assert "x" in (tmp_path / "images.csv").read_text()


def test_curves_of_very_many_seeds_are_refused(tmp_path: Path) -> None:
    lines = (f'{{"round": 0, "seed": {seed}, "step": 1}}\n' for seed in range(MOST_SEEDS + 1))
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    with pytest.raises(ExportError, match="more than 10,000 seeds"):
        export(Storage(tmp_path), ["csv"])


def test_rows_that_all_have_other_names_make_no_table() -> None:
    with pytest.raises(ExportError, match="A table of 6,000 rows that have 6,000 different names together"):
        table([{str(number): 0} for number in range(6_000)])


def test_objects_within_objects_are_columns_to_a_depth_that_no_report_has(tmp_path: Path) -> None:
    nested: dict[str, Any] = {"end": 1}
    for _ in range(600):
        nested = {"a": nested}
    (tmp_path / "report.json").write_text(json.dumps({"images": [{"psnr": 7, "deep": nested}]}))
    export(Storage(tmp_path), ("csv",))
    assert read(tmp_path / "images.csv") == [{"psnr": "7"}]


def test_an_empty_folder_holds_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing to export"):
        export(Storage(tmp_path), ["csv"])


def test_what_is_missing_here_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats_module, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match="pip install tensorboard"):
        require_packages(["csv", "tensorboard"], Storage(tmp_path))
    require_packages(["csv"], Storage("memory://bucket/run"))
    monkeypatch.setattr(formats_module, "find_spec", lambda name: name)
    with pytest.raises(ExportError, match="give export=csv"):
        require_packages(["wandb"], Storage("memory://bucket/run"))


def test_the_setting_takes_several_formats_and_refuses_others() -> None:
    assert load_config(["export=csv,wandb"]).export == ("csv", "wandb")
    with pytest.raises(ValueError, match="export=xml: choose among csv, tensorboard, wandb"):
        load_config(["export=csv,xml"])
    assert tuple(FORMATS) == EXPORTS


def test_numbers_are_written_to_the_last_digit() -> None:
    values: list[Any] = [math.pi, 1e-300, 3, None]
    written = table([{"x": value} for value in values]).splitlines()[1:]
    assert [float(word) if word else None for word in written if word != '""'] == [math.pi, 1e-300, 3.0]

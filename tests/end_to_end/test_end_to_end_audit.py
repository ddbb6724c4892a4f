"""The real `audit`: a grid of tiny attacks with a bad cell in it, and the same audit taken up again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gradinversion.run import main
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CELLS = ("sweep.batch_sizes=1,3", "sweep.defences=none,noise:1", "sweep.bn=eval")
TINY = (
    "client.image_size=16",
    "agents.count=1",
    "agents.iterations=6",
    "coordinator.period=3",
    "peeling.enabled=false",
)


def run(*words: str, cwd: Path) -> str:
    command = [sys.executable, str(ROOT / "run.py"), "audit", *words]
    environment = os.environ | {"RAY_ADDRESS": "local", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def numbers(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "audit.json").read_text())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images: a batch of three is a bad cell."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "pictures").mkdir()
    for name, colour in (("a", (200, 40, 40)), ("b", (40, 80, 200))):
        image = Image.new("RGB", (20, 20), colour)
        image.paste((230, 230, 90), (5, 5, 12, 15))
        image.save(folder / "pictures" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    return run("out=out", "client.images=pictures", *CELLS, *TINY, cwd=folder)


def test_a_bad_cell_is_told_and_stops_no_other(folder: Path, printed: str) -> None:
    cells = {cell["name"]: cell for cell in numbers(folder / "out")["cells"]}
    assert [cell["state"] for cell in cells.values()].count("done") == 2
    failed = [cell for cell in cells.values() if cell["state"] == "failed"]
    assert {cell["levels"]["batch"] for cell in failed} == {"batch 3"}
    assert all("holds 2 images and the batch needs 3" in cell["sentence"] for cell in failed)
    assert "[4/4]" in printed
    assert "Traceback" not in printed


def test_every_good_cell_ran_all_controls_and_has_its_own_report(folder: Path, printed: str) -> None:
    for cell in numbers(folder / "out")["cells"]:
        if cell["state"] == "done":
            report = json.loads((folder / "out" / cell["folder"] / "report.json").read_text())
            assert {control["name"] for control in report["controls"]} == {"no_gradient", "other_images", "one_agent"}
            assert cell["label_scores"].items() <= report["labels"].items()
            assert cell["label_scores"]["class_presence"]["recall"] is not None
            assert (folder / "out" / cell["folder"] / "report.html").exists()
            assert cell["problems"] == []
            assert cell["iip"] is not None


def test_the_page_is_whole(folder: Path, printed: str) -> None:
    page = (folder / "out" / "audit.html").read_text()
    assert page.count("data:image/png") == 2 * 3
    assert "batch needs 3" in page
    assert f"Report: {folder / 'out' / 'audit.html'}" in printed


def test_taken_up_again_finished_cells_stay_and_new_ones_are_added(folder: Path, printed: str) -> None:
    out = folder / "out"
    before = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/report.json")}
    assert len(before) == 2
    words = ("out=out", "client.images=pictures", *CELLS[:1], "sweep.defences=none,noise:1,nosie:1", *CELLS[2:], *TINY)
    run(*words, "resume=true", cwd=folder)
    assert {path: path.stat().st_mtime_ns for path in out.glob("cells/*/report.json")} == before
    cells = numbers(out)["cells"]
    assert [cell["state"] for cell in cells].count("done") == 2
    assert any("nosie" in cell["sentence"] for cell in cells)


def test_a_grid_that_cannot_be_run_at_all_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "sweep.defences=nosie:1,prune:3"]) == 2
    printed = capsys.readouterr().err
    assert "nosie" in printed
    assert "prune" in printed
    assert not (tmp_path / "out").exists()

"""Grids and results that are made up, so that planning, verdicts and the page can be tested without an attack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gradinversion.audit import LabelScores
from gradinversion.audit.pictures import data_uri
from gradinversion.settings.run import RunConfig, load_config
from gradinversion.sweep.facts import AuditFacts
from gradinversion.sweep.grid import Grid, make_grid
from gradinversion.sweep.results import CellResult, Risk, State, Worst

Settings = Callable[..., RunConfig]
Facts = Callable[..., AuditFacts]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A configuration of a small grid in a folder of the test: words override it."""

    def make(*words: str) -> RunConfig:
        usual = ["sweep.batch_sizes=4,8", "sweep.defences=none,noise:0.1,noise:1", "sweep.bn=eval"]
        return load_config([f"out={tmp_path}/out", *usual, *words])

    return make


def done(leaked: int = 0, images: int = 4, **changes: Any) -> CellResult:
    """A finished cell."""
    facts: dict[str, Any] = {
        "sentence": f"{leaked} of {images} images leaked",
        "iip": leaked / images,
        "labels": 0.75,
        "label_scores": LabelScores(precision=1.0, recall=0.5, class_count=0.25, instances=0.75),
        "psnr": 24.5,
        "floor": 15.2,
        "control": 16.1,
        "ssim": 0.71,
        "seconds": 12.5,
        "agents": 2,
        "iterations": 200,
        "worst": worst(),
        "risks": (Risk("cat", "leaked", 8.4, 2.31, 0.4), Risk("dog", "none", -0.5, 2.1, None)),
        "embedding": "thumbnails",
    }
    return CellResult(State.DONE, images=images, leaked=leaked, **facts | changes)


def worst(name: str = "cat") -> Worst:
    """The picture of a ramp, three times."""
    uri = data_uri(torch.linspace(0, 1, 48).reshape(3, 4, 4))
    return Worst(name, uri, uri, 24.5, uri, "no gradient", 16.1)


def results(grid: Grid, leaked: Callable[[dict[str, str]], int | None]) -> dict[str, CellResult]:
    """A result for each cell by its levels' settings; None leaves it out."""
    found = {}
    for cell in grid.cells:
        words: dict[str, str] = {}
        for axis, level in zip(grid.axes, cell.levels, strict=True):
            words |= axis.levels[level].settings
        number = leaked(words)
        if number is not None:
            images = int(words["client.batch_size"])
            found[cell.name] = done(min(number, images), images)
    return found


def leak_undefended(words: dict[str, str]) -> int:
    """Images leak where there is no defence."""
    return 3 if words["client.defence"] == "none" else 0


@pytest.fixture
def fakes() -> SimpleNamespace:
    """The functions above, for tests that make results of their own."""
    return SimpleNamespace(done=done, worst=worst, results=results, leak_undefended=leak_undefended)


@pytest.fixture
def facts(settings: Settings) -> Facts:
    """An audit that has ended, with made-up results."""

    def make(
        *words: str, leaked: Callable[[dict[str, str]], int | None] = leak_undefended, **changes: Any
    ) -> AuditFacts:
        config = settings(*words)
        grid = make_grid(config)
        missing = CellResult(State.FAILED, "the image folder 'x' holds 2 images and the batch needs 8")
        known = {cell.name: missing for cell in grid.cells} | results(grid, leaked)
        values: dict[str, Any] = {
            "config": config,
            "grid": grid,
            "results": known,
            "configs": {cell.name: cell.config for cell in grid.cells if cell.config is not None},
            "accuracies": {},
            "accuracy_problems": {},
            "diverged": frozenset(),
            "notes": (),
            "seconds": 83.0,
        }
        return AuditFacts(**values | changes)

    return make

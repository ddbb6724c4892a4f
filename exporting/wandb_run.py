"""The loss curves as a run of Weights & Biases that stays on this machine until its owner sends it."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ..storage.folders import Storage
from .run_files import NO_CURVE, ExportError, RunFiles

FOLDER = "wandb"
# Without it W&B reports its own errors to its makers.
_SILENT = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}


def write_offline_run(run: RunFiles, storage: Storage) -> list[str]:
    """Write ``wandb/offline-run-…`` into a folder; the name of what was written. Nothing is sent.

    A curve is called ``seed-N/TERM``; the means of the report are the run's summary. No setting and nothing that
    names files or packages goes in, since who sends the run shows it to others; the library puts the platform and
    Python's version there.

    Raises:
        ExportError: What lies in the folder under that name is none.
    """
    if not run.curves:
        return []
    place = storage.path / FOLDER
    # A stranger's folder may have a link there, to files that the library would write over.
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise ExportError(f"{place} is no folder: remove it, and export again.")
    import wandb

    settings = wandb.Settings(
        console="off",
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        disable_git=True,
        save_code=False,
    )
    with patch.dict(os.environ, _SILENT):
        try:
            record = wandb.init(
                project="gradinversion", name="attack", dir=str(storage.path), mode="offline", settings=settings
            )
            record.define_metric("step")
            record.define_metric("*", step_metric="step")
            for step, numbers in sorted(_by_step(run).items()):
                record.log({"step": step, **numbers})
            record.summary.update(_means(run))
            record.finish()
        finally:
            wandb.teardown()  # the process that writes the file ends, with all of it written
    _without_logs(place)
    return [FOLDER]


def _without_logs(place: Path) -> None:
    """Take away what the library says of its own work, which names folders of this machine."""
    for found in [*place.glob("debug*.log"), *place.glob("latest-run"), *place.glob("offline-run-*/logs")]:
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found, ignore_errors=True)
        else:
            found.unlink(missing_ok=True)


def _by_step(run: RunFiles) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for row in run.curves:
        numbers = {name: value for name, value in row.items() if name not in NO_CURVE and value is not None}
        found[row["step"]] |= {f"seed-{row['seed']}/{name}": value for name, value in numbers.items()}
    return found


def _means(run: RunFiles) -> dict[str, Any]:
    report = run.report or {}
    return {name: value for name, value in report.items() if type(value) in (int, float)}

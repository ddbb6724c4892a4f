"""The loss curves as TensorBoard's event files: a run for each seed, so that the seeds lie over each other."""

from __future__ import annotations

from ..storage.folders import Storage
from .run_files import NO_CURVE, RunFiles

FOLDER = "tensorboard"


def write_events(run: RunFiles, storage: Storage) -> list[str]:
    """Write ``tensorboard/seed-N`` into a folder; the name of what was written.

    Each term of the objective is a scalar over the steps of its seed. Numbers that are not finite are left out.
    """
    from torch.utils.tensorboard import SummaryWriter

    storage.remove(FOLDER)  # else the curves of both exports would lie over each other
    for seed in sorted({row["seed"] for row in run.curves}):
        with SummaryWriter(str(storage.path / FOLDER / f"seed-{seed}")) as writer:
            for row in run.curves:
                for name, value in row.items():
                    if row["seed"] == seed and name not in NO_CURVE and value is not None:
                        writer.add_scalar(name, value, row["step"])
    return [FOLDER] if run.curves else []

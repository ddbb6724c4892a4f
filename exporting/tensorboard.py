"""The loss curves as TensorBoard's event files: a run for each seed, so that the seeds lie over each other."""

from __future__ import annotations

from collections import defaultdict

from ..storage.folders import Storage
from .run_files import NO_CURVE, Row, RunFiles

FOLDER = "tensorboard"


def write_events(run: RunFiles, storage: Storage) -> list[str]:
    """Write ``tensorboard/seed-N`` into a folder; the name of what was written.

    Each term of the objective is a scalar over the steps of its seed. Numbers that are not finite are left out.
    """
    from torch.utils.tensorboard import SummaryWriter

    storage.remove(FOLDER)  # else the curves of both exports would lie over each other
    by_seed: dict[int, list[Row]] = defaultdict(list)
    for row in run.curves:
        by_seed[row["seed"]].append(row)
    for seed, rows in sorted(by_seed.items()):
        with SummaryWriter(str(storage.path / FOLDER / f"seed-{seed}")) as writer:
            for row in rows:
                for name, value in row.items():
                    if name not in NO_CURVE and value is not None:
                        writer.add_scalar(name, value, row["step"])
    return [FOLDER] if run.curves else []

"""What local training is worth as a defence: the attack that retraces the client's steps beside the naive one.

    python -m benchmarks.local_steps           # one table; json in benchmarks/results/
    python -m benchmarks.local_steps --rates   # how well a learning rate that is not known is estimated; no attack

ConvNet-32 with random weights (seed 0), batch norm in evaluation mode, four photos, plain SGD at learning rate 0.05.
"naive" takes the weight delta over the learning rate and the number of steps for one gradient; "retraced" is the
attack's own way. Both are given the labels and run as one agent without layer peeling, so that nothing but the steps
differs. PSNR is the mean over the images, matched by label.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gradinversion.agents import AgentsConfig, Inverter, Objective, ObjectiveConfig
from gradinversion.audit import constant_images, psnr
from gradinversion.capture import (
    BatchNormMode,
    CapturedUpdate,
    ClientConfig,
    as_gradient,
    estimate_learning_rate,
    recover_labels,
    simulate_client,
    told,
)
from gradinversion.target import Target
from rich.console import Console
from rich.table import Table
from torch import nn

RATE = 0.05


@dataclass(frozen=True)
class Cell:
    """How the client trains, and the ways in which its delta is attacked."""

    epochs: int
    batch: int = 0
    shuffled: bool = False
    ways: tuple[str, ...] = ("naive", "retraced")

    @property
    def name(self) -> str:
        """Of the row."""
        batch = "all images" if not self.batch else f"batches of {self.batch}"
        return f"{self.epochs} x {batch}{', shuffled' if self.shuffled else ''}"


CELLS = (
    Cell(1),
    Cell(2),
    Cell(4),
    Cell(8),
    Cell(2, 2, ways=("naive", "retraced", "retraced, rate estimated")),
    Cell(2, 2, shuffled=True, ways=("naive", "retraced", "retraced, order assumed")),
)


def variant(way: str, update: CapturedUpdate, model: nn.Module) -> tuple[CapturedUpdate, bool]:
    """What is attacked, and whether its scale is known."""
    assert update.local is not None
    if way == "naive":
        return as_gradient(update, model), True
    if way == "retraced, rate estimated":
        rate = estimate_learning_rate(update, model)
        return update.stating(learning_rate=told(rate)), False
    if way == "retraced, order assumed":
        return update.stating(shuffled=told(False)), True
    return update, True


def rows(cell: Cell, seeds: int, steps: int, done: set[tuple[str, str, int]]) -> Iterator[dict[str, Any]]:
    """One row per way and seed that is not done."""
    settings = {"local_epochs": cell.epochs, "local_batch_size": cell.batch, "shuffled": cell.shuffled}
    update, model, private = simulate_client(ClientConfig(learning_rate=RATE, **settings), 0)  # type: ignore[arg-type]
    assert update.local is not None
    found = recover_labels(update, model).labels
    shared = {
        "client": cell.name,
        "steps": update.local.steps(update.image_count),
        "labels_right": bool(torch.equal(found, private.labels)),
        "rate_estimated": estimate_learning_rate(update, model),
        "constant": float(psnr(constant_images(private.images), private.images).mean()),
    }
    for way in cell.ways:
        attacked, scale_known = variant(way, update, model)
        objective = Objective(Target(attacked, model, private.labels, None, scale_known), ObjectiveConfig())
        for seed in range(seeds):
            if (cell.name, way, seed) in done:
                continue
            inverter = Inverter(objective, AgentsConfig(iterations=steps), seed)
            inverter.run(steps, None)
            images = update.normalisation.invert(inverter.images).clamp(0, 1)
            yield shared | {
                "way": way,
                "seed": seed,
                "psnr": float(psnr(images, private.images).mean()),
                "mismatch": objective.gradient_loss(inverter.images),
                "mismatch_at_private": objective.gradient_loss(update.normalisation.apply(private.images)),
            }


def show(found: list[dict[str, Any]]) -> None:
    """One line per client and way: the mean over the seeds."""
    table = Table(title="mean PSNR in dB; mismatch: relative layer norm, of the answer and of the private images")
    for heading in ("client", "steps", "attack", "PSNR", "constant", "mismatch", "private", "labels", "rate estimated"):
        table.add_column(heading)
    for client, way in dict.fromkeys((row["client"], row["way"]) for row in found):
        same = [row for row in found if (row["client"], row["way"]) == (client, way)]
        first = same[0]

        def mean(key: str, same: list[dict[str, Any]] = same) -> float:
            return sum(row[key] for row in same) / len(same)

        table.add_row(
            client,
            str(first["steps"]),
            way,
            f"{mean('psnr'):.1f}",
            f"{first['constant']:.1f}",
            f"{mean('mismatch'):.3f}",
            f"{first['mismatch_at_private']:.1g}",
            "right" if first["labels_right"] else "wrong",
            f"{first['rate_estimated']:.4f}",
        )
    Console(width=140).print(table)


def show_rates() -> None:
    """Estimated over true learning rate, by batch-norm mode and local steps."""
    table = Table(title="estimated / true learning rate, ConvNet-32 with random weights, four photos")
    for heading in ("batch norm", "rate", *(f"{cell.name}" for cell in CELLS if not cell.shuffled)):
        table.add_column(heading)
    for bn in BatchNormMode:
        for rate in (0.01, 0.1):
            ratios = []
            for cell in CELLS:
                if cell.shuffled:
                    continue
                client = ClientConfig(bn=bn, learning_rate=rate, local_epochs=cell.epochs, local_batch_size=cell.batch)
                update, model, _ = simulate_client(client, 0)
                ratios.append(f"{estimate_learning_rate(update, model) / rate:.4f}")
            table.add_row(bn, f"{rate:g}", *ratios)
    Console(width=140).print(table)


def main() -> None:
    """Print the table and write ``benchmarks/results/local_steps.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of the attack's one agent")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of rows, from 0")
    parser.add_argument("--rates", action="store_true", help="print the table of learning rates alone")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the json file has")
    parser.add_argument("--out", default="local_steps", help="name of the json file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.rates:
        show_rates()
        return
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{options.out}.json"
    facts: dict[str, Any] = {"learning_rate": RATE, "steps": options.steps, "torch": torch.__version__}
    found: list[dict[str, Any]] = []
    if options.resume and path.exists():
        kept = json.loads(path.read_text())
        found = kept["rows"] if {**kept, "rows": None} == facts | {"rows": None} else []
    done = {(row["client"], row["way"], row["seed"]) for row in found}
    for cell in CELLS if options.only is None else [CELLS[index] for index in options.only]:
        for row in rows(cell, options.seeds, options.steps, done):
            print(f"{row['client']}, {row['way']}, seed {row['seed']}: {row['psnr']:.1f} dB", flush=True)
            found.append(row)
            path.write_text(json.dumps(facts | {"rows": found}, indent=2) + "\n")
    show(found)


if __name__ == "__main__":
    main()

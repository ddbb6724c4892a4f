"""What each defence is worth against an attack that ignores it, and against one that allows for it.

    python -m benchmarks.defences                  # the table; json in benchmarks/results/
    python -m benchmarks.defences --only prune clip --photos 1 2 3 --steps 500

Cell C4 (ConvNet-32, random init of seed 0, evaluation-mode batch norm, four natural photos at 32 px, labels 0..3), one
agent, labels read off the defended update. PSNR is the mean over images and photo sets, matched by label or, where the
labels are wrong, by best assignment. Photo set 0 served to choose the adaptations, so it is left out.

naive: `objective.adaptive=false`. adaptive: the default. Both with layer peeling where the update allows it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from gradinversion.agents import Agent, AgentsConfig, ObjectiveConfig
from gradinversion.agents.adaptation import Adaptation
from gradinversion.agents.defence_evidence import allow_for_defence
from gradinversion.audit import constant_images, psnr
from gradinversion.audit.matching import match
from gradinversion.audit.metrics import label_accuracy
from gradinversion.capture import CapturedUpdate, ClientConfig, PrivateBatch, simulate_client
from gradinversion.coordinator import AttackConfig
from gradinversion.coordinator.preparation import prepare
from rich.console import Console
from rich.table import Table
from torch import nn

from .photos import write_photos

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Defence:
    """One row: its name and the client's settings."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


def _row(defence: str, strength: float, **more: Any) -> Defence:
    said = "".join(f", {key.removeprefix('defence_')} {value:g}" for key, value in more.items())
    return Defence(f"{defence} {strength:g}{said}", {"defence": defence, "defence_strength": strength, **more})


DEFENCES = (
    Defence("none"),
    _row("clip", 0.1),
    _row("dp_sgd", 0.0, defence_clip=0.5),
    _row("dp_sgd", 0.001, defence_clip=0.5),
    _row("dp_sgd", 0.01, defence_clip=0.5),
    _row("dp_sgd", 0.1, defence_clip=0.5),
    _row("soteria", 0.1),
    _row("soteria", 0.8),
    _row("prune", 0.5),
    _row("prune", 0.9),
    _row("prune", 0.99),
    _row("quantise", 8),
    _row("quantise", 4),
    _row("quantise", 2),
    _row("quantise", 1),
    _row("noise", 0.01),
    _row("noise", 0.1),
    _row("noise", 0.5),
    _row("noise", 1.0),
    Defence("batch of 8", {"batch_size": 8}),
    Defence("2 clients of 4", {"clients": 2}),
)


def attack(
    update: CapturedUpdate, model: nn.Module, private: PrivateBatch, adaptive: bool, steps: int
) -> dict[str, Any]:
    """One agent on one update, and how well it did."""
    config = AttackConfig(objective=ObjectiveConfig(adaptive=adaptive), agents=AgentsConfig(count=1, iterations=steps))
    began = time.perf_counter()
    prepared = prepare(update, model, config)
    agent = Agent(prepared.target, config.objective, config.agents, 0)
    images = update.normalisation.invert(agent.run(steps).images).clamp(0, 1)
    anchor, labels = prepared.target.anchor, prepared.labels.labels
    matching = match(images, labels, private.images, private.labels)
    return {
        "psnr": float(psnr(images[list(matching.order)], private.images).mean()),
        "labels": label_accuracy(labels, private.labels),
        "peeled": anchor is not None,
        "adapted": bool(anchor and anchor.scales) or allow_for_defence(update, model, labels) != Adaptation(),
        "seconds": time.perf_counter() - began,
        "messages": [*prepared.messages, *agent.messages],
    }


def measure(defence: Defence, photos: int, steps: int, folder: Path) -> dict[str, Any]:
    """Both attackers on one defended update."""
    client = ClientConfig(images=str(write_photos(folder / f"photos-{photos}", photos)), **defence.settings)
    update, model, private = simulate_client(client, 0)
    adaptive = attack(update, model, private, True, steps)
    # Where nothing is allowed for, both attacks are the same to the bit.
    naive = attack(update, model, private, False, steps) if adaptive["adapted"] else adaptive
    return {
        "defence": defence.name,
        "photos": photos,
        "said": update.defence,
        "constant": float(psnr(constant_images(private.images), private.images).mean()),
        "naive": naive,
        "adaptive": adaptive,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """One line per defence: means over the photo sets."""
    table = Table(title="mean PSNR above the constant image, in dB")
    for heading in ("defence", "constant image", "naive", "adaptive", "adaptive, PSNR", "labels", "peeled"):
        table.add_column(heading)
    for name in dict.fromkeys(row["defence"] for row in rows):
        found = [row for row in rows if row["defence"] == name]
        floor = fmean(row["constant"] for row in found)
        naive, adaptive = (fmean(row[kind]["psnr"] for row in found) for kind in ("naive", "adaptive"))
        labels = fmean(row["adaptive"]["labels"] for row in found)
        peeled = "/".join(
            "yes" if any(row[kind]["peeled"] for row in found) else "no" for kind in ("naive", "adaptive")
        )
        values = (f"{floor:.1f}", f"{naive - floor:+.1f}", f"{adaptive - floor:+.1f}", f"{adaptive:.1f}")
        table.add_row(name, *values, f"{labels:.0%}", peeled)
    Console(width=120).print(table)


def main() -> None:
    """Print the table and write its numbers after every row, so that an interrupted run is not lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[1, 2, 3], help="photo sets")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--only", nargs="+", help="words that a defence's name must contain one of")
    parser.add_argument("--results", type=Path, default=RESULTS / "defences.json")
    options = parser.parse_args()
    torch.set_num_threads(1)  # faster than two on this network
    chosen = [d for d in DEFENCES if not options.only or any(word in d.name for word in options.only)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for photos in options.photos:
            for defence in chosen:
                rows.append(measure(defence, photos, options.steps, Path(folder)))
                facts = {"steps": options.steps, "torch": torch.__version__, "rows": rows}
                options.results.parent.mkdir(exist_ok=True)
                options.results.write_text(json.dumps(facts, indent=2) + "\n")
    show(rows)


if __name__ == "__main__":
    main()

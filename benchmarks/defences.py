"""What each defence is worth against an attack that ignores it, and against one that allows for it.

    python -m benchmarks.defences                  # all rows; added to the json in benchmarks/results/
    python -m benchmarks.defences --only prune clip --photos 1 2 3 --steps 300 --networks trained
    python -m benchmarks.defences --table          # what is in the json, as in docs/defences.md

Cell C4 (ConvNet-32, evaluation-mode batch norm, four natural photos at 32 px, labels 0..3), one agent, labels read off
the defended update. The network has random weights of seed 0, or is the one that learned to tell crops of the photos
apart (`group.trained_network`). PSNR is the mean over images and photo sets, matched by label or, where the labels are
wrong, by best assignment. Photo set 0 served to choose the adaptations, so it is left out.

naive: `objective.adaptive=false`. adaptive: the default. Both with layer peeling where the update allows it. A row of
the same defence, photo set, steps and network takes the place of the one before.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from gradinversion.agents import Agent, AgentsConfig, ObjectiveConfig
from gradinversion.audit import constant_images, psnr
from gradinversion.audit.matching import match
from gradinversion.audit.metrics import label_accuracy
from gradinversion.capture import CapturedUpdate, ClientConfig, PrivateBatch, defence_words, simulate_client
from gradinversion.coordinator import AttackConfig
from gradinversion.target.adaptation import Adaptation
from gradinversion.target.defence_evidence import allow_for_defence
from gradinversion.target.preparation import prepare
from safetensors.torch import save_file
from torch import nn

from .group import trained_network
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


def _combined(text: str) -> Defence:
    return Defence(text.replace("+", " + ").replace(":", " "), {"defence": text})


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
    _combined("clip:0.1+noise:0.1"),
    _combined("clip:0.1+prune:0.9"),
    _combined("clip:0.1+quantise:4"),
    _combined("prune:0.9+quantise:8"),
    _combined("prune:0.9+quantise:4"),
    _combined("prune:0.9+noise:0.1"),
    _combined("noise:0.1+prune:0.9"),
    _combined("noise:0.1+quantise:4"),
    _combined("soteria:0.1+clip:0.1"),
    _combined("soteria:0.1+prune:0.9"),
)


def attack(
    update: CapturedUpdate, model: nn.Module, private: PrivateBatch, adaptive: bool, steps: int
) -> dict[str, Any]:
    """One agent on one update, and how well it did."""
    config = AttackConfig(objective=ObjectiveConfig(adaptive=adaptive), agents=AgentsConfig(count=1, iterations=steps))
    began = time.perf_counter()
    prepared = prepare(update, model, config.request)
    agent = Agent(prepared.target, config.objective, config.agents, 0)
    agent.run(steps)
    images = update.normalisation.invert(agent.images).clamp(0, 1)
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


def measure(defence: Defence, photos: int, steps: int, network: str, folder: Path) -> dict[str, Any]:
    """Both attackers on one defended update."""
    images = write_photos(folder / f"photos-{photos}", photos)
    weights = _trained(images, folder / f"trained-{photos}.safetensors") if network == "trained" else None
    client = ClientConfig(images=str(images), weights=weights, **defence.settings)
    update, model, private = simulate_client(client, 0)
    adaptive = attack(update, model, private, True, steps)
    # Where nothing is allowed for, both attacks are the same to the bit.
    naive = attack(update, model, private, False, steps) if adaptive["adapted"] else adaptive
    return {
        "defence": defence.name,
        "photos": photos,
        "steps": steps,
        "network": network,
        "torch": torch.__version__,
        "said": defence_words(update.defences),
        "constant": float(psnr(constant_images(private.images), private.images).mean()),
        "naive": naive,
        "adaptive": adaptive,
    }


def _trained(images: Path, file: Path) -> str:
    if not file.exists():
        save_file(trained_network(images).state_dict(), file)
    return str(file)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown for each network and number of steps: one defence a line, means over its photo sets, in dB."""
    lines = []
    for network, steps in sorted({(row["network"], row["steps"]) for row in rows}, reverse=True):
        here = [row for row in rows if (row["network"], row["steps"]) == (network, steps)]
        lines += [f"{network}, {steps} steps:", ""]
        lines += ["| defence | photo sets | constant image | naive attack | attack that allows for it | labels |"]
        lines += ["|---|---|---|---|---|---|"]
        for name in (defence.name for defence in DEFENCES):
            found = [row for row in here if row["defence"] == name]
            if found:
                sets = ", ".join(str(photos) for photos in sorted(row["photos"] for row in found))
                floor = fmean(row["constant"] for row in found)
                naive, adaptive = (fmean(row[kind]["psnr"] for row in found) for kind in ("naive", "adaptive"))
                labels = fmean(row["adaptive"]["labels"] for row in found)
                lines.append(f"| {name} | {sets} | {floor:.1f} | {naive:.1f} | {adaptive:.1f} | {labels:.0%} |")
        lines.append("")
    return lines


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("network", "steps", "photos", "defence"))


def main() -> None:
    """Print the table and write its numbers after every row, so that an interrupted run is not lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[1, 2, 3], help="photo sets")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--networks", nargs="+", choices=("untrained", "trained"), default=["untrained"])
    parser.add_argument("--only", nargs="+", help="words that a defence's name must contain one of")
    parser.add_argument("--results", type=Path, default=RESULTS / "defences.json")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)  # faster than two on this network
    chosen = [d for d in DEFENCES if not options.only or any(word in d.name for word in options.only)]
    rows: list[dict[str, Any]] = json.loads(options.results.read_text())["rows"] if options.results.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for network, photos, defence in product(options.networks, options.photos, () if options.table else chosen):
            row = measure(defence, photos, options.steps, network, Path(folder) / network)
            print(
                f"{network} {photos} {defence.name}: {row['naive']['psnr']:.1f} {row['adaptive']['psnr']:.1f}",
                flush=True,
            )
            rows = [kept for kept in rows if _key(kept) != _key(row)] + [row]
            options.results.parent.mkdir(exist_ok=True)
            options.results.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

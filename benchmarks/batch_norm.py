"""What each batch-norm threat model is worth to the attacker, and how much of it the statistics give on their own.

    python -m benchmarks.batch_norm            # every row, photo sets 1 to 5; json in benchmarks/results/
    python -m benchmarks.batch_norm --runs 0 --weights 0.01 0.1 1   # the set that the weight was chosen on

Two networks, four photos at 32 px each: ConvNet-32 with random weights, and the same network trained to tell crops of
photos apart (`group.trained_network`). One agent, without Ray. `all` is the attack with its default terms, `no
statistics` leaves the batch-norm prior out, `statistics alone` leaves the gradient out, so that it holds image priors
and statistics only; `peeled` is the default attack with layer peeling, where that applies. Differences to the constant
image in dB, with 95 % bootstrap intervals over photo sets.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradinversion.agents import Agent, AgentsConfig, ObjectiveConfig
from gradinversion.audit import constant_images, psnr
from gradinversion.capture import BatchNormMode, PrivateBatch, capture_gradient, load_images, load_model
from gradinversion.coordinator import AttackConfig
from gradinversion.target import Target
from gradinversion.target.preparation import prepare
from torch import nn

from .group import trained_network
from .photos import write_photos
from .registration_measures import interval

BATCH, SIZE = 4, 32
RESULTS = Path(__file__).parent / "results" / "batch_norm.json"


def objectives(weight: float) -> dict[str, ObjectiveConfig]:
    """The objective of each row, by name."""
    whole = ObjectiveConfig(batch_norm_weight=weight)
    return {
        "all": whole,
        "no statistics": replace(whole, batch_norm_weight=0.0),
        "statistics alone": replace(whole, gradient_weight=0.0),
        "peeled": whole,
    }


def make_network(name: str, photos: Path, run: int) -> nn.Module:
    """The server's model."""
    return trained_network(photos) if name == "trained" else load_model("convnet", seed=run)


def attack(target: Target, private: PrivateBatch, objective: ObjectiveConfig, steps: int, run: int) -> dict[str, float]:
    """One agent on one update: mean PSNR of its last candidate, and seconds of processor time."""
    began = time.process_time()
    agent = Agent(target, objective, AgentsConfig(iterations=steps), run)
    agent.run(steps)
    images = target.update.normalisation.invert(agent.images).clamp(0, 1)
    return {"psnr": float(psnr(images, private.images).mean()), "seconds": time.process_time() - began}


def one_run(network: str, run: int, steps: int, weight: float, folder: Path) -> list[dict[str, Any]]:
    """Every mode and objective on one photo set."""
    photos = write_photos(folder / f"photos-{run}", run)
    images, names = load_images(str(photos), BATCH, SIZE)
    private = PrivateBatch(images, torch.arange(BATCH), names)
    model = make_network(network, photos, run)
    floor = float(psnr(constant_images(images), images).mean())
    rows = []
    for mode in BatchNormMode:
        update = capture_gradient(model, images, private.labels, batch_norm=mode)
        plain = Target(update, model, private.labels)
        for name, objective in objectives(weight).items():
            target = (
                prepare(update, model, AttackConfig(objective=objective).request).target if name == "peeled" else plain
            )
            if name == "peeled" and target.anchor is None:
                continue
            if name == "statistics alone" and network == "untrained" and mode is not BatchNormMode.TRAIN_SHARED:
                continue  # no statistics are known: this would be the image priors alone
            found = attack(target, private, objective, steps, run)
            rows.append(
                {"network": network, "run": run, "mode": str(mode), "terms": name, "constant": floor, **found}
                | {"weight": weight}
            )
            print(f"{network} {run} {mode} {name} {weight:g}: {found['psnr']:.2f} dB", flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per network, mode and terms."""
    generator = np.random.default_rng(0)
    lines = []
    keys = ("network", "mode", "terms", "weight")
    for key in dict.fromkeys(tuple(row[name] for name in keys) for row in rows):
        own = [row for row in rows if tuple(row[name] for name in keys) == key]
        gains = [row["psnr"] - row["constant"] for row in own]
        gain, low, high = interval(gains, [float(row["run"]) for row in own], generator)
        line = dict(zip(keys, key, strict=True)) | {"runs": len(own), "gain": gain, "low": low, "high": high}
        means = {name: float(np.mean([row[name] for row in own])) for name in ("psnr", "constant", "seconds")}
        lines.append(line | means)
    return lines


def main() -> None:
    """Print the table and write its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=("untrained", "trained"), default=["untrained", "trained"])
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="photo sets")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--weights", type=float, nargs="+", default=[ObjectiveConfig().batch_norm_weight])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for network in options.networks:
            for weight in options.weights:
                for run in options.runs:
                    rows += one_run(network, run, options.steps, weight, Path(folder))
    lines = table(rows)
    options.out.parent.mkdir(exist_ok=True)
    facts = {"steps": options.steps, "batch": BATCH, "lines": lines, "rows": rows}
    options.out.write_text(json.dumps(facts, indent=1) + "\n")
    print("network    mode           terms              weight runs  PSNR  constant  difference [95 %]")
    for line in lines:
        print(
            f"{line['network']:10} {line['mode']:14} {line['terms']:18} {line['weight']:6g} {line['runs']:4} "
            f"{line['psnr']:6.2f} {line['constant']:6.2f} {line['gain']:+6.2f} [{line['low']:+.2f} {line['high']:+.2f}]"
        )


if __name__ == "__main__":
    main()

"""Every preset on the same captured updates with equal steps: the table of docs/attacks.md.

    python -m benchmarks.attacks                 # all cells, one photo set; added to the json in benchmarks/results/
    python -m benchmarks.attacks --cells C4 --sets 3 --steps 1000
    python -m benchmarks.attacks --table         # what is in the json for --cells and --steps

Each seed of each attack makes the same number of steps (one step: one derivative of the whole batch); attacks with
four seeds cost four times as much, and have a line with one seed too. A preset is as it ships but for the number of
seeds and steps, and consensuses come every tenth of the steps. In this process, without Ray; what runs is what an agent
and the coordinator run. Cells: C4 and C8 (ConvNet-32, random weights, batches of 4 and 8) and `trained` (the same
network, trained to tell crops of the photos apart, batch 4). The photo sets begin at 1: set 0 is the one that weights
were tuned on. The generator of latent projection (`generator.py`) never saw the attacked photos.

A row of the same cell, photo set, attack and steps takes the place of the one before.

PSNR and SSIM are means over images and sets. Images are matched by label where labels are unique and all recovered,
else by the assignment with the least error. Seconds are of processor time, labels and layer peeling included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradinversion.agents import Agent, Objective
from gradinversion.audit import constant_images, match, psnr, ssim, without_gradient
from gradinversion.audit.metrics import label_accuracy
from gradinversion.coordinator.consensus import form_consensus
from gradinversion.coordinator.finishing import with_found_labels
from gradinversion.coordinator.permutations import permute
from gradinversion.coordinator.policy import plan_rounds, usable
from gradinversion.coordinator.selection import choose
from gradinversion.settings.run import RunConfig, load_config
from gradinversion.target.preparation import Preparation, prepare
from torch import Tensor, nn

from .generator import train
from .group import Case, make_case

SEEDS = 4
CELLS = ("C4", "trained", "C8")
RESULTS = Path(__file__).parent / "results" / "attacks.json"
_GENERATOR = "agents.generator=benchmarks.generator:build"
ATTACKS: dict[str, tuple[str, ...]] = {
    "deep_inversion (no gradient)": ("preset=deep_inversion",),
    "dlg": ("preset=dlg",),
    "idlg": ("preset=idlg",),
    "idlg with Adam": ("preset=idlg", "agents.optimiser=adam", "agents.learning_rate=0.1"),
    "inverting_gradients": ("preset=inverting_gradients",),
    "latent_projection": ("preset=latent_projection", _GENERATOR),
    "latent_projection, no gradient": ("preset=latent_projection", _GENERATOR),
    "gradinversion, no peeling, one seed": ("peeling.enabled=false", "agents.count=1"),
    "gradinversion_lazy, no peeling": ("preset=gradinversion_lazy", "peeling.enabled=false", f"agents.count={SEEDS}"),
    "gradinversion, no peeling": ("peeling.enabled=false", f"agents.count={SEEDS}"),
    "gradinversion_paper": ("preset=gradinversion_paper", f"agents.count={SEEDS}"),
    "gradinversion, one seed": ("agents.count=1",),
    "gradinversion": (f"agents.count={SEEDS}",),
}


def configuration(name: str, steps: int, seed: int) -> RunConfig:
    """Of an attack, with so many steps for each seed."""
    given = (f"agents.iterations={steps}", f"coordinator.period={max(1, steps // 10)}", f"seed={SEEDS * seed}")
    config = load_config([*ATTACKS[name], *given])
    return without_gradient(config) if name.endswith("no gradient") else config


def reconstruct(prepared: Preparation, config: RunConfig) -> tuple[Tensor | None, Tensor]:
    """The answer of an attack, normalised, and its labels; no answer when every seed failed."""
    seeds = [config.seed + k for k in range(config.agents.count)]
    agents = [Agent(prepared.target, config.objective, config.agents, seed) for seed in seeds]
    labels = prepared.labels.labels
    consensus = None
    for current in plan_rounds(config.agents.iterations, config.coordinator):
        target = consensus.images if consensus is not None else None
        accounts = [agent.run(current.until_step, target) for agent in agents]
        left = usable(accounts)
        if not left:
            return None, labels
        if current.forms_consensus:
            # Labels are unique here or wrong: seeds keep their places.
            images = torch.stack([agents[position].images for position in left])
            names = [seeds[position] for position in left]
            consensus, permutations = form_consensus(images, names, labels, current.index, config.registration)
            images = permute(images, permutations)
    assert consensus is not None
    prepared = with_found_labels(prepared, [accounts[position] for position in left], permutations)
    objective = Objective(prepared.target, config.objective)
    return choose(images, consensus.images, objective.evidence).images, prepared.labels.labels


def one_attack(name: str, case: Case, steps: int, seed: int, generator: nn.Module) -> dict[str, Any]:
    """What became of one attack on one update."""
    config = configuration(name, steps, seed)
    known = case.target
    began = time.process_time()
    prepared = prepare(
        known.update, known.model, config.request, generator if config.agents.generator is not None else None
    )
    images, labels = reconstruct(prepared, config)
    found: dict[str, Any] = {
        "attack": name,
        "seeds": config.agents.count,
        "steps": config.agents.iterations,
        "seconds": time.process_time() - began,
        "labels": label_accuracy(labels, known.labels),
    }
    if images is None:
        return found | {"psnr": None, "ssim": None}
    shown = known.update.normalisation.invert(images).clamp(0, 1)
    order = match(shown, labels, case.truth, known.labels).order
    return found | scores(shown[list(order)], case.truth)


def scores(images: Tensor, truth: Tensor) -> dict[str, float]:
    """Means over the batch of images in [0, 1]."""
    return {"psnr": float(psnr(images, truth).mean()), "ssim": float(ssim(images, truth).mean())}


def table(rows: Sequence[dict[str, Any]], cells: Sequence[str]) -> list[str]:
    """Lines of Markdown: one attack a line, its means over the photo sets."""
    lines = ["| attack | seeds x steps |" + "".join(f" {cell}: PSNR | SSIM | labels | s |" for cell in cells)]
    lines += ["|---|---|" + "---|" * (4 * len(cells))]
    for name in dict.fromkeys(row["attack"] for row in rows):
        own = [row for row in rows if row["attack"] == name]
        text = f"| {name} | {own[0]['seeds']} x {own[0]['steps']} |" if own[0].get("seeds") else f"| {name} | – |"
        for cell in cells:
            here = [row for row in own if row["cell"] == cell]
            for key, form in (("psnr", ".1f"), ("ssim", ".2f"), ("labels", ".0%"), ("seconds", ".0f")):
                values: list[Any] = [row.get(key) for row in here]
                missing = not values or any(value is None for value in values)
                text += " – |" if missing else f" {float(np.mean(values)):{form}} |"
        lines.append(text)
    return lines


def main() -> None:
    """Print the table and write its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--sets", type=int, default=1, help="photo sets, from set 1 on")
    parser.add_argument("--steps", type=int, default=300, help="of each seed of each attack")
    parser.add_argument("--attacks", nargs="+", choices=tuple(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    if not options.table:
        measure(options, rows)
    print("\n".join(table(in_order(rows, options.cells, options.steps), options.cells)))


def in_order(rows: Sequence[dict[str, Any]], cells: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """The rows of these cells with so many steps, attack by attack."""
    shown = [row for row in rows if row["cell"] in cells and row.get("steps") in (None, steps)]
    order = ["constant image", *ATTACKS]
    return sorted(shown, key=lambda row: order.index(row["attack"]))


def measure(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Add what was asked for to the rows, and write them after each."""
    generator = train().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        for photo_set in range(1, 1 + options.sets):
            for cell in options.cells:
                case = make_case(cell, photo_set, Path(folder))
                facts = {"cell": cell, "set": photo_set}
                add(rows, facts | {"attack": "constant image"} | scores(constant_images(case.truth), case.truth))
                for name in options.attacks:
                    found = facts | one_attack(name, case, options.steps, photo_set, generator)
                    print(f"{cell} set {photo_set} {name}: {found['psnr']}", flush=True)
                    add(rows, found | {"torch": torch.__version__})
                    options.out.parent.mkdir(exist_ok=True)
                    options.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def add(rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """In place of the row of the same measurement, if there is one."""
    names = ("cell", "set", "attack", "steps")
    rows[:] = [kept for kept in rows if any(kept.get(name) != row.get(name) for name in names)] + [row]


if __name__ == "__main__":
    main()

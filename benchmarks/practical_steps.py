"""Weight deltas of several local steps peeled: visits, steps, labels and images, on photos nothing was tuned on.

    python -m benchmarks.practical_steps                       # every row; json in benchmarks/results/, table printed
    python -m benchmarks.practical_steps --rows steps-4x2 --sets 1

One core; seconds are those of the processor. ResNet-18 with a 3x3 stem, random weights, 32 px, batch norm on its
running statistics, float32, unless the row says otherwise. The server knows the learning rate and momentum, and epochs
and batch size but where the row has it read them; neither labels nor the order of a shuffled epoch, nor which image is
of which client where it has an average over several. Photos are 8-bit files of `unseen_photos`, more than 16 crops of
those that come with scikit-image; on these the decoder is fitted. `constant` is the best flat image of each.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gradinversion.audit import constant_images, psnr
from gradinversion.capture import (
    IMAGENET,
    BatchNormMode,
    CapturedUpdate,
    LocalTraining,
    assumed,
    load_images,
    told,
    train_locally,
)
from gradinversion.peeling.cut import photo_crops, public_photos
from gradinversion.peeling.visit_recovery import recover_visits
from gradinversion.target.local_steps import check_local_steps
from torch import Tensor, nn

from .networks import cifar_resnet18
from .residual import match, trained
from .residual_case import CLASSES, PHOTOS, SEEDS
from .rows_command import rows_command
from .trained import CLASSES as TRAINED_CLASSES
from .unseen_photos import MOST, write_unseen_photos

RESULTS = Path(__file__).parent / "results" / "practical_steps.json"
_SIZE = 32


@dataclass(frozen=True)
class Row:
    """One way in which a client trains."""

    name: str
    images: int
    local: LocalTraining
    clients: int = 1
    """Of as many images each; the server has the average of their deltas."""
    make: Callable[[int], nn.Module] = cifar_resnet18
    """Given the number of classes."""
    classes: int = CLASSES
    batch_norm: BatchNormMode = BatchNormMode.EVAL
    untold: bool = False
    """Neither epochs nor batch size are told: both are read off the delta."""
    network_seed: int = 0
    """As of `residual_case.Row`."""


ROWS = (
    Row("steps-2x2", 4, LocalTraining(0.02, 1, 2)),
    Row("steps-4x2", 8, LocalTraining(0.01, 1, 2, 0.9)),
    Row("steps-4x2-seed-1", 8, LocalTraining(0.01, 1, 2, 0.9), network_seed=1),
    Row("epochs-2x2x4", 8, LocalTraining(0.01, 2, 4, shuffled=True)),
    Row("clients-2-of-2x2", 8, LocalTraining(0.01, 1, 2), 2),
    Row("clients-4-of-2x1", 8, LocalTraining(0.01, 1, 1), 4),
    Row("untold-4x2", 8, LocalTraining(0.01, 1, 2, 0.9), untold=True),
    Row("untold-2x2x4", 8, LocalTraining(0.01, 2, 4, shuffled=True), untold=True),
    Row("trained-4x2", 8, LocalTraining(0.01, 1, 2, 0.9), make=trained, classes=TRAINED_CLASSES),
    Row("private-2x2", 4, LocalTraining(0.02, 1, 2), batch_norm=BatchNormMode.TRAIN_PRIVATE),
    Row("private-4x2", 8, LocalTraining(0.01, 1, 2, 0.9), batch_norm=BatchNormMode.TRAIN_PRIVATE),
    Row("usual-5x10x8", 80, LocalTraining(0.01, 5, 8, shuffled=True)),
)


def run_row(row: Row, number: int) -> dict[str, Any]:
    """One set of photos."""
    images = _photos(row.images, number)
    torch.manual_seed(number + SEEDS * row.network_seed)
    model = row.make(row.classes).eval()
    labels = (torch.arange(row.images) * 7 + number) % row.classes
    generator = torch.Generator().manual_seed(number)
    update = _sent(row, model, images, labels, generator)
    line: dict[str, Any] = {"row": row.name, "set": number}
    began = time.process_time()
    if row.untold:
        update = update.stating(epochs=assumed(1), batch_size=assumed(None))
        update = update.stating(**check_local_steps(update, model).facts)
        assert update.local is not None
        line["read"] = [update.local.epochs, update.local.batch_size]
    found = recover_visits(update, model, tell=lambda words: print(words, file=sys.stderr, flush=True))
    line["seconds"] = time.process_time() - began
    steps = row.clients * row.local.steps(row.images // row.clients)
    line |= {"visits": row.images * row.local.epochs, "steps": steps, "message": found.message}
    line |= {"places": [[step.rule, step.value, list(step.shape), max(step.error)] for step in found.steps]}
    line["checks"] = dict(found.steps[0].checks) if found.steps else {}
    line["constant"] = psnr(constant_images(images), images).tolist()
    if found.images is None or found.error is None:
        return line
    line |= {"images": len(found.images), "disagreement": found.disagreement, "stated": found.error.tolist()}
    if len(found.images) != row.images:
        return line
    pixels = IMAGENET.invert(found.images).clamp(0, 1)
    order = match(pixels, images)
    line |= {"psnr": psnr(pixels[order].to(images), images).tolist(), "stated_error": found.error[order].tolist()}
    exact = (pixels[order] * 255).round() == (images.double() * 255).round()
    line["exact_values"] = exact.flatten(1).double().mean(dim=1).tolist()
    off = (found.images[order] - IMAGENET.apply(images.double())).flatten(1).norm(dim=1)
    line["true_error"] = (off / IMAGENET.apply(images.double()).flatten(1).norm(dim=1)).tolist()
    if found.labels is not None:
        line["labels_right"] = int((found.labels[order] == labels).sum())
    assert found.visits is not None
    line["visit_of"] = found.visits.tolist()
    if found.clients is not None:
        line["client_of"] = found.clients[order].tolist()
    return line


def _photos(count: int, number: int) -> Tensor:
    """As 8-bit files have them."""
    if count > MOST:
        found = photo_crops(list(public_photos().values()), (_SIZE, _SIZE), count, number)
    else:
        folder = write_unseen_photos(PHOTOS / f"set-{number}", number, max(8, count))
        found = load_images(str(folder), count, _SIZE)[0]
    return (found * 255).round() / 255


def _sent(row: Row, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> CapturedUpdate:
    """What the server holds: of several clients the average, each of whom has the images that come next."""
    how: dict[str, Any] = {"local": row.local, "normalisation": IMAGENET, "batch_norm": row.batch_norm}
    how["generator"] = generator
    parts = zip(images.chunk(row.clients), labels.chunk(row.clients), strict=True)
    sent = [train_locally(model, *own, **how) for own in parts]
    average = {name: torch.stack([one.gradients[name] for one in sent]).mean(dim=0) for name in sent[0].gradients}
    facts = sent[0].facts.stating(image_count=told(len(images)), clients=told(row.clients))
    return replace(sent[0], gradients=average, facts=facts)


def show(lines: Sequence[dict[str, Any]]) -> None:
    """One line for each set."""
    head = ("client", "set", "visits, steps", "nearest features", "their error", "constant, dB", "images, dB", "labels")
    print("| " + " | ".join((*head, "s")) + " |")
    print("|---" * 9 + "|")
    for line in lines:
        _, _, shape, error = line["places"][-1] if line["places"] else ("", "", [], float("nan"))
        found = " ".join(f"{value:.1f}" for value in line.get("psnr", []))
        flat = " ".join(f"{value:.0f}" for value in line["constant"])
        where = " x ".join(map(str, shape)) or "none"
        counted = f"{line['visits']}, {line['steps']}"
        cells = [line["row"], line["set"], counted, where, f"{error:.0e}", flat, found or "–"]
        cells += [line.get("labels_right", "–"), f"{line['seconds']:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    """Run the rows that are asked for."""
    rows_command(__doc__, ROWS, run_row, show, RESULTS)


if __name__ == "__main__":
    main()

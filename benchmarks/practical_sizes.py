"""Who leaks by batch size and stage of training: how near to the images features of a ResNet follow from its gradient.

    python -m benchmarks.practical_sizes                # every row; json in benchmarks/results/, table printed
    python -m benchmarks.practical_sizes --rows random-16

ResNet-18 with a 3x3 stem, 32 px, evaluation mode, float32 gradients, labels not given, random or trained to over 90 %
on crops of other photos. Up to 16 photos are those that nothing was tuned on; more are crops of those that come with
scikit-image. No images are looked for, since features are a leak by themselves; taps need ``16 B < 512`` here. *Final
layer*: the features that it reads, by the chain of the last layers, which needs fewer images than classes unless zeros
of a rectifier tell images apart. One core, seconds of the processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gradinversion.capture import IMAGENET, BatchNormMode, capture_gradient, load_images, recover_labels
from gradinversion.peeling import PeelingConfig, peel
from gradinversion.peeling.cut import NoCut, find_cut, photo_crops, public_photos
from gradinversion.peeling.graph import NoGraph, network_graph
from gradinversion.peeling.recording import record_derivation
from gradinversion.peeling.rules import derive
from gradinversion.peeling.wording import reached
from torch import Tensor, nn

from .networks import cifar_resnet18
from .residual import trained
from .residual_case import CLASSES, PHOTOS
from .residual_networks import feature_errors
from .rows_command import rows_command
from .trained import CLASSES as TRAINED_CLASSES
from .unseen_photos import MOST, write_unseen_photos

RESULTS = Path(__file__).parent / "results" / "practical_sizes.json"
_SIZE, _OPERATIONS = 32, 1e12


@dataclass(frozen=True)
class Row:
    """One batch size at one stage."""

    name: str
    batch: int
    make: Callable[[int], nn.Module]
    classes: int


ROWS = tuple(
    Row(f"{stage}-{batch}", batch, make, classes)
    for stage, make, classes in (("random", cifar_resnet18, CLASSES), ("trained", trained, TRAINED_CLASSES))
    for batch in (1, 2, 4, 8, 16, 32, 64, 128)
)


def run_row(row: Row, number: int) -> dict[str, Any]:
    """One set of photos."""
    images = _photos(row.batch, number)
    torch.manual_seed(number)
    model = row.make(row.classes).eval()
    labels = (torch.arange(row.batch) * 7 + number) % row.classes
    update = capture_gradient(model, images, labels, normalisation=IMAGENET)
    graph = network_graph(model, update.image_shape, BatchNormMode.EVAL, row.batch)
    assert not isinstance(graph, NoGraph)
    config, began = PeelingConfig(), time.process_time()
    found = derive(graph, update.gradients, row.batch, config.tolerance, None, _OPERATIONS)
    line: dict[str, Any] = {"row": row.name, "set": number, "batch": row.batch}
    line["message"] = reached(record_derivation(found, row.batch, config.tolerance))
    line["places"] = len({step.value for step in found.steps})
    cut = find_cut(found) if found.steps else None
    if cut is not None and not isinstance(cut, NoCut):
        line |= feature_errors(cut, IMAGENET.apply(images.double()))
    recovered = recover_labels(update, model)
    counts = [torch.bincount(some.cpu(), minlength=row.classes) for some in (recovered.labels, labels)]
    line["labels_right"] = int(torch.minimum(*counts).sum())
    head = peel(update, model, recovered.labels, config).anchor
    line["head"] = None if head is None else [head.module, list(head.activations.shape[1:]), head.error]
    line["seconds"] = time.process_time() - began
    return line


def _photos(count: int, number: int) -> Tensor:
    """As 8-bit files have them."""
    if count > MOST:
        return (photo_crops(list(public_photos().values()), (_SIZE, _SIZE), count, number) * 255).round() / 255
    folder = write_unseen_photos(PHOTOS / f"set-{number}", number, max(8, count))
    return (load_images(str(folder), count, _SIZE)[0] * 255).round() / 255


def show(lines: Sequence[dict[str, Any]]) -> None:
    """One line for each row, in the order of the rows."""
    print("| row | set | places | nearest features | stated, true | final layer's features, stated | labels | s |")
    print("|---" * 8 + "|")
    names = [row.name for row in ROWS]
    for line in sorted(lines, key=lambda line: (names.index(line["row"]), line["set"])):
        cut = line.get("cut", [])
        nearest = " x ".join(map(str, cut[0][1])) if cut else "none"
        error = f"{max(one[2] for one in cut):.0e}, {max(one[3] for one in cut):.0e}" if cut else "–"
        head = f"{line['head'][1][0]}, {line['head'][2]:.0e}" if line["head"] else "–"
        cells = [line["row"], line["set"], line["places"], nearest, error, head]
        cells += [f"{line['labels_right']} of {line['batch']}", f"{line['seconds']:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    """Run the rows that are asked for."""
    rows_command(__doc__, ROWS, run_row, show, RESULTS)


if __name__ == "__main__":
    main()

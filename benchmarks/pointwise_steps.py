"""Single places of a client's visits, from the weight delta of several local steps of a network as phones run it.

    python -m benchmarks.pointwise_steps                            # every row; json in benchmarks/results/
    python -m benchmarks.pointwise_steps --rows head-2x2x2 --sets 1

EfficientNet-Lite0 with its weights from ImageNet, 64 px, four photos as 8-bit files that nothing was tuned on, two
epochs of two steps of two, momentum 0.9, batch norm on its running statistics, float32; labels are not given. ``head``:
the final layer is a new one of 100 classes, as a client fine-tunes. Each row found is held against the features that
the client itself had at every place of every visit: the distance of their directions, beside the stated error. One
core; seconds are those of the processor.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode, LocalTraining, load_images, train_locally
from gradinversion.peeling.config import PeelingConfig
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.local_steps import LocalSteps
from gradinversion.peeling.visit_rows import VisitRows, rows_of_visits
from torch import Tensor, nn

from .imagenet_lite0 import CLASSES, PIXELS, imagenet_lite0
from .residual_case import PHOTOS
from .rows_command import rows_command
from .unseen_photos import write_unseen_photos

RESULTS = Path(__file__).parent / "results" / "pointwise_steps.json"
_SIZE, _IMAGES, _NEW_CLASSES = 64, 4, 100


@dataclass(frozen=True)
class Row:
    """One way in which a client trains."""

    name: str
    local: LocalTraining
    new_head: bool = False


ROWS = (
    Row("head-2x2x2", LocalTraining(0.01, 2, 2, 0.9), new_head=True),
    Row("own-2x2x2", LocalTraining(0.001, 2, 2, 0.9)),
    Row("head-1x2x2", LocalTraining(0.01, 1, 2), new_head=True),
)


def run_row(row: Row, number: int) -> dict[str, Any]:
    """One set of photos."""
    folder = write_unseen_photos(PHOTOS / f"set-{number}", number, 8)
    images = (load_images(str(folder), _IMAGES, _SIZE)[0] * 255).round() / 255
    model, classes = imagenet_lite0(), CLASSES
    if row.new_head:
        torch.manual_seed(number)
        head = model.get_submodule("classifier")
        assert isinstance(head, nn.Linear)
        classes = _NEW_CLASSES
        model.set_submodule("classifier", nn.Linear(head.in_features, classes))
    labels = (torch.arange(_IMAGES) * 7 + number) % classes
    eval_mode = BatchNormMode.EVAL
    update = train_locally(model, images, labels, local=row.local, normalisation=PIXELS, batch_norm=eval_mode)
    steps = LocalSteps.of(row.local, _IMAGES)
    graph = network_graph(model, update.image_shape, eval_mode, steps.visit_count)
    assert isinstance(graph, Graph)
    summed = {name: steps.summed(graph.tensors[name], one) for name, one in update.gradients.items()}
    config = PeelingConfig()
    began = time.process_time()
    found = rows_of_visits(graph, summed, steps, config.tolerance, config.operations)
    line: dict[str, Any] = {"row": row.name, "set": number, "seconds": time.process_time() - began}
    line |= {"visits": steps.visit_count, "steps": steps.count}
    return line if found is None else line | _held(found, model, images, labels, row.local)


def _held(given: VisitRows, model: nn.Module, images: Tensor, labels: Tensor, local: LocalTraining) -> dict[str, Any]:
    """The rows against what the client had there."""
    found, rows = given.recorded, given.rows.inputs
    true = _features(model, found.reader, images, labels, local)
    true = true / true.norm(dim=1, keepdim=True)
    which = (rows @ true.T).argmax(dim=1)
    error = (rows - true[which]).norm(dim=1)
    stated = torch.tensor(found.errors, dtype=torch.float64)
    return {
        "input of": found.reader,
        "shape": list(found.shape),
        "places": found.places,
        "found": found.count,
        "distinct": len(set(which.tolist())),
        "error": error.tolist(),
        "stated": stated.tolist(),
        "worst ratio": float((error / stated).max()),
        "of visits": sorted(set((which // (found.places // (local.epochs * _IMAGES))).tolist())),
    }


def _features(model: nn.Module, reader: str, images: Tensor, labels: Tensor, local: LocalTraining) -> Tensor:
    """What the client's network has at the input of a module, at every place of every visit."""
    own, seen = copy.deepcopy(model).eval(), list[Tensor]()

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().double().permute(0, 2, 3, 1).flatten(0, 2))

    own.get_submodule(reader).register_forward_pre_hook(keep)
    assert local.learning_rate is not None
    optimizer = torch.optim.SGD(own.parameters(), lr=local.learning_rate, momentum=local.momentum)
    pixels = PIXELS.apply(images)
    for _ in range(local.epochs):
        for batch in map(list, local.batches(len(images))):
            optimizer.zero_grad()
            F.cross_entropy(own(pixels[batch]), labels[batch]).backward()
            optimizer.step()
    return torch.cat(seen)


def show(lines: Sequence[dict[str, Any]]) -> None:
    """One line for each set."""
    head = ("client", "set", "visits, steps", "input of", "rows found", "different", "true error, most and median")
    print("| " + " | ".join((*head, "stated", "s")) + " |")
    print("|---" * 9 + "|")
    for line in lines:
        cells = [line["row"], line["set"], f"{line['visits']}, {line['steps']}", line.get("input of", "none")]
        if "found" in line:
            error = torch.tensor(line["error"])
            cells += [f"{line['found']} of {line['places']}", line["distinct"]]
            cells += [f"{error.max():.1e}, {error.median():.1e}", f"{max(line['stated']):.1e}"]
        else:
            cells += ["–"] * 4
        print("| " + " | ".join(map(str, [*cells, f"{line['seconds']:.0f}"])) + " |")


def main() -> None:
    """Run the rows that are asked for."""
    rows_command(__doc__, ROWS, run_row, show, RESULTS)


if __name__ == "__main__":
    main()

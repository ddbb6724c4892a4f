"""Batch norm on the batch's own statistics: what the gradient alone gives away of residual networks.

    python -m benchmarks.practical                              # every row; json in benchmarks/results/, table printed
    python -m benchmarks.practical --rows private-4 --sets 1

As in `benchmarks.residual` (float32 gradients, labels not given, photos that nothing was tuned on, one core, seconds of
the processor), with the client's batch norm in train mode. Its contrast apart: with the one factor, common to the whole
batch as the model is given it, that fits the private images best. Batch norm hides that factor where the statistics are
not sent, and only 8-bit pixels tell it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gradinversion.capture import BatchNormMode

from .networks import cifar_resnet18
from .residual import run_row, torchvision_network, trained
from .residual_case import Row
from .trained import CLASSES as TRAINED_CLASSES

RESULTS = Path(__file__).parent / "results" / "practical.json"
_PRIVATE, _SHARED = BatchNormMode.TRAIN_PRIVATE, BatchNormMode.TRAIN_SHARED
_RANDOM, _TRAINED = "ResNet-18, 3x3 stem, random", "the same, trained"

ROWS = (
    Row("private-4", _RANDOM, cifar_resnet18, 32, 4, batch_norm=_PRIVATE),
    Row("shared-4", _RANDOM, cifar_resnet18, 32, 4, batch_norm=_SHARED),
    Row("private-4-float", _RANDOM, cifar_resnet18, 32, 4, batch_norm=_PRIVATE, eight_bit=False),
    Row("shared-4-float", _RANDOM, cifar_resnet18, 32, 4, batch_norm=_SHARED, eight_bit=False),
    Row("private-8", _RANDOM, cifar_resnet18, 32, 8, batch_norm=_PRIVATE),
    Row("shared-8", _RANDOM, cifar_resnet18, 32, 8, batch_norm=_SHARED),
    Row("trained-private-4", _TRAINED, trained, 32, 4, TRAINED_CLASSES, batch_norm=_PRIVATE),
    Row("trained-shared-4", _TRAINED, trained, 32, 4, TRAINED_CLASSES, batch_norm=_SHARED),
    Row("sum-2x4", _RANDOM, cifar_resnet18, 32, 8, clients=2),
    Row("sum-4x2", _RANDOM, cifar_resnet18, 32, 8, clients=4),
    Row("resnet18-64-private-4", "torchvision ResNet-18", torchvision_network("resnet18"), 64, 4, batch_norm=_PRIVATE),
    Row("resnet18-64-shared-4", "torchvision ResNet-18", torchvision_network("resnet18"), 64, 4, batch_norm=_SHARED),
)


def show(lines: Sequence[dict[str, Any]]) -> None:
    """One line for each set of photos."""
    head = ("row", "set", "deepest place", "its error", "constant", "start, dB", "images, dB", "contrast apart")
    print("| " + " | ".join((*head, "exact values", "labels", "s")) + " |")
    print("|---" * 11 + "|")
    for line in lines:
        _, place, shape, error = line["steps"][-1] if line["steps"] else ("", "none", [], float("nan"))
        numbers = [line["constant"], *(line.get(name, []) for name in ("start_psnr", "psnr", "psnr_contrast_apart"))]
        shown = [" ".join(f"{value:.1f}" for value in some) or "–" for some in numbers]
        values = line.get("exact_values", [])
        exact = f"{100 * sum(values) / len(values):.1f} %" if values else "–"
        cells = [line["row"], line["set"], f"{place} ({' x '.join(map(str, shape))})", f"{error:.1e}", *shown, exact]
        cells += [f"{line.get('labels_right', '–')} of {line['batch']}", f"{line['seconds']:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    """Run the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[row.name for row in ROWS], choices=[row.name for row in ROWS])
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="number of the first set")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [row for row in ROWS if row.name in options.rows]
    # What other runs measured of other rows is kept.
    lines: list[dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else []
    for row in wanted:
        for number in range(options.first, options.first + options.sets):
            lines = [line for line in lines if (line["row"], line["set"]) != (row.name, number)]
            lines.append(run_row(row, number))
            print(json.dumps({key: lines[-1].get(key) for key in ("row", "set", "psnr", "seconds", "message")}))
            options.out.write_text(json.dumps(lines, indent=1) + "\n")
    show(lines)


if __name__ == "__main__":
    main()

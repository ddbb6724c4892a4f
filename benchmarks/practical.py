"""Batch norm on the batch's own statistics: what the gradient alone gives away of residual networks.

    python -m benchmarks.practical                              # every row; json in benchmarks/results/, table printed
    python -m benchmarks.practical --rows private-4 --sets 1

As in `benchmarks.residual` (float32 gradients, labels not given, photos that nothing was tuned on, one core, seconds of
the processor), with the client's batch norm in train mode. Its contrast apart: with the one factor, common to the whole
batch as the model is given it, that fits the private images best. Batch norm hides that factor where the statistics are
not sent, and only 8-bit pixels tell it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradinversion.capture import BatchNormMode

from .networks import cifar_resnet18
from .residual import run_row, torchvision_network, trained
from .residual_case import Row
from .rows_command import rows_command
from .trained import CLASSES as TRAINED_CLASSES

RESULTS = Path(__file__).parent / "results" / "practical.json"
_PRIVATE, _SHARED = BatchNormMode.TRAIN_PRIVATE, BatchNormMode.TRAIN_SHARED
_RANDOM, _TRAINED = "ResNet-18, 3x3 stem, random", "the same, trained"

ROWS = (
    Row("private-4", _RANDOM, cifar_resnet18, 32, 4, batch_norm=_PRIVATE),
    Row("shared-4", _RANDOM, cifar_resnet18, 32, 4, batch_norm=_SHARED),
    Row("private-4-seed-1", _RANDOM, cifar_resnet18, 32, 4, batch_norm=_PRIVATE, network_seed=1),
    Row("shared-4-seed-1", _RANDOM, cifar_resnet18, 32, 4, batch_norm=_SHARED, network_seed=1),
    Row("private-4-float", _RANDOM, cifar_resnet18, 32, 4, batch_norm=_PRIVATE, eight_bit=False),
    Row("shared-4-float", _RANDOM, cifar_resnet18, 32, 4, batch_norm=_SHARED, eight_bit=False),
    Row("private-4-step", _RANDOM, cifar_resnet18, 32, 4, batch_norm=_PRIVATE, rate=0.01),
    Row("private-4-large-step", _RANDOM, cifar_resnet18, 32, 4, batch_norm=_PRIVATE, rate=0.1),
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
    rows_command(__doc__, ROWS, run_row, show, RESULTS)


if __name__ == "__main__":
    main()

"""Residual networks peeled: features, images and seconds, on photos that nothing was tuned on.

    python -m benchmarks.residual                     # every row; json in benchmarks/results/, table printed
    python -m benchmarks.residual --rows cifar-random-4 --sets 1

One core; seconds are those of the processor. Photos are 8-bit files at the network's size, gradients are in float32,
labels are not given, batch norm runs on its running statistics. The decoder is fitted on the photos that come with
scikit-image; the private ones are those of `unseen_photos`. `constant` is the best flat image of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from gradinversion.audit import constant_images, psnr
from gradinversion.capture import IMAGENET, BatchNormMode
from gradinversion.peeling import PeelingConfig
from gradinversion.peeling.cut import grid_evidence
from gradinversion.peeling.fewer_images import with_copies
from gradinversion.peeling.recovery import recover_images
from torch import Tensor, nn

from .networks import cifar_resnet18
from .residual_case import Row, case_of
from .rows_command import rows_command
from .trained import CLASSES as TRAINED_CLASSES
from .trained import trained_cifar_resnet18

RESULTS = Path(__file__).parent / "results" / "residual.json"


def torchvision_network(name: str) -> Callable[[int], nn.Module]:
    """A network of torchvision with random weights."""
    import torchvision

    return lambda classes: getattr(torchvision.models, name)(weights=None, num_classes=classes)


def trained(classes: int) -> nn.Module:
    """The network of `trained`, whose classes are given."""
    return trained_cifar_resnet18()


ROWS = (
    Row("cifar-random-4", "ResNet-18, 3x3 stem, random", cifar_resnet18, 32, 4),
    Row("cifar-random-8", "ResNet-18, 3x3 stem, random", cifar_resnet18, 32, 8),
    Row("cifar-trained-4", "the same, trained", trained, 32, 4, TRAINED_CLASSES),
    Row("cifar-trained-8", "the same, trained", trained, 32, 8, TRAINED_CLASSES),
    Row("cifar-sure-4", "the same, trained and sure of its labels", trained, 32, 4, TRAINED_CLASSES, sure=True),
    Row("cifar-sure-8", "the same, trained and sure of its labels", trained, 32, 8, TRAINED_CLASSES, sure=True),
    Row("cifar-twice-4", "the same, random, one photo twice", cifar_resnet18, 32, 4, which=(0, 1, 0, 3)),
    Row("cifar-pairs-4", "the same, random, two photos twice", cifar_resnet18, 32, 4, which=(0, 1, 0, 1)),
    Row(
        "cifar-twice-labels-4",
        "the same, random, one photo twice with two labels",
        cifar_resnet18,
        32,
        4,
        which=(0, 1, 0, 3),
        own_labels=True,
    ),
    Row(
        "cifar-frozen-4",
        "the same, random, the final layer frozen",
        cifar_resnet18,
        32,
        4,
        frozen=("fc",),
    ),
    Row(
        "cifar-frozen-first-4",
        "the same, random, all up to the first stage frozen",
        cifar_resnet18,
        32,
        4,
        frozen=("conv1", "bn1", "layer1"),
    ),
    Row("resnet18-64-2", "torchvision ResNet-18, random", torchvision_network("resnet18"), 64, 2),
    Row("resnet18-64-4", "torchvision ResNet-18, random", torchvision_network("resnet18"), 64, 4),
    Row("resnet18-64-8", "torchvision ResNet-18, random", torchvision_network("resnet18"), 64, 8),
    Row("resnet50-64-4", "torchvision ResNet-50, random", torchvision_network("resnet50"), 64, 4),
)


def run_row(row: Row, number: int) -> dict[str, Any]:
    """One set of photos."""
    case = case_of(row, number)
    images = case.images
    began = time.process_time()
    found = with_copies(recover_images(case.update, case.model, PeelingConfig()))
    seconds = time.process_time() - began
    line: dict[str, Any] = {"row": row.name, "network": row.network, "size": row.size, "batch": row.batch}
    line |= {"set": number, "seconds": seconds, "constant": psnr(constant_images(images), images).tolist()}
    line["probability"] = case.probability.tolist()
    line |= {"steps": [[s.rule, s.value, list(s.shape), max(s.error)] for s in found.steps], "message": found.message}
    if found.start is not None:
        start = IMAGENET.invert(found.start.images).clamp(0, 1)
        line["start_psnr"] = psnr(start[match(start, images)].to(images), images).tolist()
    if found.images is None or found.error is None:
        return line
    pixels = IMAGENET.invert(found.images).clamp(0, 1)
    order = match(pixels, images)
    exact = (pixels[order] * 255).round() == (images.double() * 255).round()
    line |= {"psnr": psnr(pixels[order].to(images), images).tolist(), "stated_error": found.error[order].tolist()}
    line["true_error"] = errors(IMAGENET.apply(pixels[order]), IMAGENET.apply(images.double()))
    if row.batch_norm is not BatchNormMode.EVAL:
        own, true = found.images[order], IMAGENET.apply(images.double())
        apart = IMAGENET.invert((own * true).sum() / own.square().sum() * own).clamp(0, 1)
        line["psnr_contrast_apart"] = psnr(apart.to(images), images).tolist()
    # What is said without the private images: the errors are relative to each image as the model is given it.
    size = found.images.flatten(1).square().mean(dim=1).sqrt() * (sum(IMAGENET.std) / 3)
    grid = grid_evidence(pixels, found.error * size)
    line |= {"said_exact": grid.exact[order].tolist(), "grid_cost": grid.cost[order].tolist()}
    line["exact_values"] = exact.flatten(1).double().mean(dim=1).tolist()
    if found.labels is not None:
        line["labels_right"] = int((found.labels[order] == case.labels).sum())
    return line


def match(found: Tensor, images: Tensor) -> Tensor:
    """For each private image the place of its reconstruction, by optimal assignment."""
    from scipy.optimize import linear_sum_assignment

    apart = torch.cdist(images.double().flatten(1), found.double().flatten(1))
    return torch.as_tensor(linear_sum_assignment(apart.numpy())[1])


def errors(found: Tensor, images: Tensor) -> list[float]:
    """Relative, of each image as the model is given it."""
    off = (found - images).flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
    return off.tolist()


def show(lines: Sequence[dict[str, Any]]) -> None:
    """One line for each set."""
    head = ("network", "px", "B", "set", "deepest place", "its error", "constant", "images, dB")
    print("| " + " | ".join((*head, "bit for bit, of them said", "labels", "s")) + " |")
    print("|---" * 11 + "|")
    for line in lines:
        _, place, shape, error = line["steps"][-1] if line["steps"] else ("", "none", [], float("nan"))
        found = " ".join(f"{value:.1f}" for value in line.get("psnr", line.get("start_psnr", [])))
        flat = " ".join(f"{value:.1f}" for value in line["constant"])
        exact = [share == 1 for share in line.get("exact_values", [])]
        said = sum(right and told for right, told in zip(exact, line.get("said_exact", []), strict=True))
        labels = line.get("labels_right", "–")
        where = f"{place} ({' x '.join(map(str, shape))})"
        cells = [line["network"], line["size"], line["batch"], line["set"], where, f"{error:.1e}", flat, found or "–"]
        cells += [f"{sum(exact)} of {line['batch']}, {said}", f"{labels} of {line['batch']}", f"{line['seconds']:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    """Run the rows that are asked for."""
    rows_command(__doc__, ROWS, run_row, show, RESULTS)


if __name__ == "__main__":
    main()

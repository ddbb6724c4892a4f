"""The cells of the benchmark of quality: an update, its network, and what only the judge knows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from gradinversion.audit import constant_images, match, psnr
from gradinversion.capture import (
    IMAGENET,
    CapturedUpdate,
    Normalisation,
    PrivateBatch,
    capture_gradient,
    load_images,
    load_model,
)
from torch import Tensor, nn

from .group import trained_network
from .networks import POOLED_RESNET
from .photos import write_photos
from .unseen_photos import write_unseen_photos

SIDE = 32
TRAINED = "trained"
CENTRED = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Cell:
    """A network and the labels of the batches that are attacked on it; batch norm in evaluation mode, 32 px."""

    name: str
    network: str
    labels: tuple[int, ...]
    classes: int = 10
    about: str = ""
    apart: bool = False
    """Where every attack is known to fail: it stands in a table of its own, and enters no median."""


CELLS = {
    cell.name: cell
    for cell in (
        Cell("C4", "convnet", (0, 1, 2, 3), about="ConvNet-32, random weights, 4 images"),
        Cell("C8", "convnet", tuple(range(8)), about="ConvNet-32, random weights, 8 images"),
        Cell("T4", TRAINED, (0, 1, 2, 3), about="ConvNet-32, trained on crops of other photos, 4 images"),
        Cell("D8", "convnet", (0, 0, 1, 1, 2, 2, 3, 3), about="ConvNet-32, random weights, 8 images in 4 classes"),
        Cell("C16", "convnet", tuple(range(16)), 100, "ConvNet-32, random weights, 16 images, 100 classes"),
        Cell(
            "P4",
            POOLED_RESNET,
            (0, 1, 2, 3),
            about="ResNet of three blocks, global pooling, random weights, 4 images",
            apart=True,
        ),
    )
}


@dataclass(frozen=True)
class Case:
    """A captured update and the truth about it."""

    update: CapturedUpdate
    model: nn.Module
    private: PrivateBatch

    def psnr(self, images: Tensor, labels: Tensor) -> float:
        """Mean over the batch, in dB.

        Args:
            images: In [0, 1]; by label where all labels are unique and right, else by the best assignment.
            labels: For which each image was optimised.
        """
        truth = self.private
        order = match(images, labels, truth.images, truth.labels).order
        return float(psnr(images[list(order)], truth.images).mean())

    @property
    def constant(self) -> float:
        """PSNR of each image's own mean colour."""
        return float(psnr(constant_images(self.private.images), self.private.images).mean())


def make_case(name: str, number: int, folder: Path) -> Case:
    """The update of a cell on a set of unseen photos.

    Args:
        name: Of the cell.
        number: Of the photo set.
        folder: For the photos.
    """
    cell = CELLS[name]
    photos = write_unseen_photos(folder / f"unseen-{number}-{len(cell.labels)}", number, len(cell.labels))
    images, names = load_images(str(photos), len(cell.labels), SIDE)
    labels = torch.tensor(cell.labels)
    model = make_network(cell.network, cell.classes, folder)
    # Each network is fed as it was trained; random weights know no difference.
    normalisation = CENTRED if cell.network == TRAINED else IMAGENET
    update = capture_gradient(model, images, labels, normalisation=normalisation)
    return Case(update, model, PrivateBatch(images, labels, names))


@cache
def make_network(network: str, classes: int, folder: Path) -> nn.Module:
    """The network of a cell: random weights of seed 0, or trained on the photos that settings were tuned on."""
    if network == TRAINED:
        return trained_network(write_photos(folder / "tuning-0", 0))
    return load_model(network, classes, SIDE, seed=0)

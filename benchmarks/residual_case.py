"""One gradient of the benchmarks of residual networks: the row it belongs to, and what a client sends for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from gradinversion.capture import IMAGENET, BatchNormMode, CapturedUpdate, Normalisation, capture_gradient, load_images
from jaxtyping import Float, Int
from torch import Tensor, nn

from .unseen_photos import write_unseen_photos

PHOTOS = Path(__file__).resolve().parents[1] / "build" / "unseen"
CLASSES = 100


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    network: str
    make: Callable[[int], nn.Module]
    """Given the number of classes."""
    size: int
    batch: int
    classes: int = CLASSES
    sure: bool = False
    """Labels are the ones that the network gives the images, and not whichever come next."""
    normalisation: Normalisation = IMAGENET
    batch_norm: BatchNormMode = BatchNormMode.EVAL
    eight_bit: bool = True
    """Whether the images are 8-bit files of the network's size; else they were resized in floating point."""


@dataclass(frozen=True)
class Case:
    """A row on one set of photos."""

    update: CapturedUpdate
    model: nn.Module
    images: Float[Tensor, "batch channel height width"]
    """Private, in [0, 1], of 8-bit values unless the row says otherwise."""
    labels: Int[Tensor, " batch"]
    probability: Float[Tensor, " batch"]
    """That the network gives each label."""


def case_of(row: Row, number: int) -> Case:
    """The gradient of the row's network on photos that nothing was tuned on.

    Args:
        row: Which network, how large and how many images.
        number: Of the set of photos; it seeds the network too.
    """
    folder = write_unseen_photos(PHOTOS / f"set-{number}", number, max(8, row.batch))
    images = load_images(str(folder), row.batch, row.size)[0]
    images = (images * 255).round() / 255 if row.eight_bit else images
    torch.manual_seed(number)
    model = row.make(row.classes).eval()
    labels = (torch.arange(row.batch) * 7 + number) % row.classes
    with torch.no_grad():
        probabilities = model(row.normalisation.apply(images)).softmax(dim=1)
    if row.sure:
        labels = probabilities.argmax(dim=1)
    update = capture_gradient(model, images, labels, normalisation=row.normalisation, batch_norm=row.batch_norm)
    return Case(update, model, images, labels, probabilities.gather(1, labels[:, None])[:, 0])

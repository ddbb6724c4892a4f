"""One gradient of the benchmarks of residual networks: the row it belongs to, and what a client sends for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gradinversion.capture import (
    IMAGENET,
    BatchNormMode,
    CapturedUpdate,
    LocalTraining,
    Normalisation,
    as_gradient,
    capture_gradient,
    load_images,
    told,
    train_locally,
)
from jaxtyping import Float, Int
from torch import Tensor, nn

from .unseen_photos import write_unseen_photos

PHOTOS = Path(__file__).resolve().parents[1] / "build" / "unseen"
CLASSES = 100
SEEDS = 1000
"""Between the seeds of two networks on the same photos: more than there are sets of photos."""


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
    network_seed: int = 0
    """Of random weights, beside the number of the set: another one is another network on the same photos."""
    clients: int = 1
    """That the batch is of, as many images each; the server has the average of their gradients."""
    rate: float = 0.0
    """Of the one local step whose weight delta is sent; 0 where a gradient is."""
    which: tuple[int, ...] = ()
    """Of the photos each image is, where some come more than once."""
    own_labels: bool = False
    """Whether copies of a photo have labels of their own."""
    frozen: tuple[str, ...] = ()
    """Modules that the client does not train."""


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
        number: Of the set of photos; it seeds the network too, with the row's own seed.
    """
    folder = write_unseen_photos(PHOTOS / f"set-{number}", number, max(8, row.batch))
    images = load_images(str(folder), row.batch, row.size)[0]
    images = (images * 255).round() / 255 if row.eight_bit else images
    torch.manual_seed(number + SEEDS * row.network_seed)
    model = row.make(row.classes).eval()
    for name in row.frozen:
        model.get_submodule(name).requires_grad_(False)
    labels = (torch.arange(row.batch) * 7 + number) % row.classes
    if row.which:
        which = list(row.which)
        images, labels = images[which], labels if row.own_labels else labels[which]
    with torch.no_grad():
        probabilities = model(row.normalisation.apply(images)).softmax(dim=1)
    if row.sure:
        labels = probabilities.argmax(dim=1)
    probability = probabilities.gather(1, labels[:, None])[:, 0]
    return Case(_sent(row, model, images, labels), model, images, labels, probability)


def _sent(row: Row, model: nn.Module, images: Tensor, labels: Tensor) -> CapturedUpdate:
    """What the server holds: of several clients the average, each of whose gradients was computed by itself."""
    parts = zip(images.chunk(row.clients), labels.chunk(row.clients), strict=True)
    how: dict[str, Any] = {"normalisation": row.normalisation, "batch_norm": row.batch_norm}
    if row.rate:
        # As a run takes it: what the weights were rounded to after the step is in the gradient.
        update = train_locally(model, images, labels, local=LocalTraining(row.rate, 1, None), **how)
        return as_gradient(update, model)
    sent = [capture_gradient(model, *own, **how) for own in parts]
    average = {name: torch.stack([one.gradients[name] for one in sent]).mean(dim=0) for name in sent[0].gradients}
    facts = sent[0].facts.stating(image_count=told(len(images)), clients=told(row.clients))
    return replace(sent[0], gradients=average, facts=facts)

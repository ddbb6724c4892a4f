"""Which networks hide the contrast of a batch is told from their graph, and their gradients agree."""

from __future__ import annotations

import dataclasses
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode, capture_gradient
from gradinversion.peeling.cut import Cut
from gradinversion.peeling.graph import NoGraph, network_graph
from gradinversion.peeling.record import Contrast
from gradinversion.peeling.recovery import recover_images
from gradinversion.peeling.shared_contrast import contrast_of, with_contrast
from torch import Tensor, nn


class Stem(nn.Module):
    """A first layer, what reads it, and a head."""

    def __init__(self, norm: bool, bias: bool, skip: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.beside = nn.Conv2d(3, 8, 1) if skip else None
        self.fc = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        value = self.norm(self.first(images))
        if self.beside is not None:
            value = value + self.beside(images)
        return self.fc(F.relu(value).mean((2, 3)))


HIDDEN, SEEN = Contrast.HIDDEN, Contrast.SEEN
PRIVATE, SHARED, EVAL = BatchNormMode.TRAIN_PRIVATE, BatchNormMode.TRAIN_SHARED, BatchNormMode.EVAL


@pytest.mark.parametrize(
    ("norm", "bias", "skip", "mode", "expected"),
    [
        (True, False, False, PRIVATE, HIDDEN),
        (True, True, False, PRIVATE, HIDDEN),  # the batch's mean takes the bias away
        (True, False, False, SHARED, SEEN),
        (True, False, False, EVAL, SEEN),
        (False, False, False, PRIVATE, SEEN),
        (True, False, True, PRIVATE, SEEN),  # another layer reads the images and is not normed
    ],
)
def test_the_contrast_is_hidden_where_batch_norm_reads_the_first_layer(
    norm: bool, bias: bool, skip: bool, mode: BatchNormMode, expected: Contrast
) -> None:
    model, images, labels = Stem(norm, bias, skip), torch.rand(4, 3, 8, 8), torch.arange(4)
    update = capture_gradient(model, images, labels, batch_norm=mode)
    graph = network_graph(model, update.image_shape, mode, 4)
    assert not isinstance(graph, NoGraph)
    assert contrast_of(graph, update) is expected
    # A batch of half the contrast, as the model is given it, has the same gradient behind the first layer or not.
    normal = update.normalisation
    faded = normal.invert(0.5 * normal.apply(images))
    other = capture_gradient(model, faded, labels, batch_norm=mode).gradients
    apart = (other["fc.weight"] - update.gradients["fc.weight"]).norm() / update.gradients["fc.weight"].norm()
    if mode is not SHARED:  # shared statistics tell it, the gradient does not
        assert (float(apart) < 1e-2) == (expected is HIDDEN)
    record = recover_images(update, model).record
    assert record is not None
    assert record.contrast is expected


def test_the_record_says_what_the_contrast_comes_from() -> None:
    from gradinversion.peeling.wording import standing

    model, labels = Stem(True, False, False), torch.arange(4)
    update = capture_gradient(model, torch.rand(4, 3, 8, 8), labels, batch_norm=PRIVATE)
    record = recover_images(update, model).record
    assert record is not None
    said = " ".join(text for _, text in standing(record))
    if record.nearest is not None:
        assert "contrast of the whole batch" in said
    seen = dataclasses.replace(record, contrast=SEEN)
    assert "contrast" not in " ".join(text for _, text in standing(seen))


@pytest.mark.parametrize("spread", [0.0, 0.04, 0.3])
def test_an_error_is_stated_that_the_hidden_contrast_does_not_exceed(
    monkeypatch: pytest.MonkeyPatch, spread: float
) -> None:
    monkeypatch.setattr("gradinversion.peeling.shared_contrast.hides_contrast", lambda cut, images: True)
    noise = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    images, bounds = 2 * spread * noise, (-2 * torch.ones(3, 1, 1).double(), 2 * torch.ones(3, 1, 1).double())
    shown = with_contrast(cast(Cut, None), images, torch.full((4,), 1e-4, dtype=torch.float64), bounds)
    assert shown.contrast is HIDDEN
    assert bool(shown.images.isfinite().all())
    off = (shown.images - images).flatten(1).norm(dim=1)
    assert bool((off <= shown.error * images.flatten(1).norm(dim=1)).all())

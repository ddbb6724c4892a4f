"""What counts as a batch that a client can run, and what is said of any other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import IMAGENET, LocalTraining, UpdateError, capture_gradient, train_locally
from gradinversion.capture.batch import as_batch, require_classes, require_unit_range
from torch import Tensor, nn

HALF = ((0.5,), (0.5,))
LABELS = torch.tensor([0, 1])


def network(channels: int = 3, side: int = 4, classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes)).eval()


def pictures(channels: int = 3, side: int = 4) -> Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def one_step(model: nn.Module, images: Any, labels: Any, **options: Any) -> object:
    return train_locally(model, images, labels, local=LocalTraining(0.01), **options)


DOORS = pytest.mark.parametrize("send", [capture_gradient, one_step], ids=["gradient", "local steps"])
Send = Callable[..., object]


@DOORS
@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.full((2, 3, 4, 4), 200, dtype=torch.uint8), "type uint8 from 200 to 200.*divide 8-bit pixels by 255"),
        (torch.ones(2, 3, 4, 4, dtype=torch.int64), "type int64 from 1 to 1"),
        (torch.ones(2, 3, 4, 4, dtype=torch.bool), "type bool; give floating-point numbers"),
        (pictures() * 255, r"span .* to 25[0-9]; give them in \[0, 1\]: divide 8-bit pixels by 255"),
        (pictures() * 4095, "divide them by their largest possible value"),
        (IMAGENET.apply(pictures()), "they may be normalised already; give them before that"),
        (pictures() * 2 - 1, r"may be scaled to \[-1, 1\].*\(images \+ 1\) / 2"),
        (pictures() + 2e-5 + (1 - pictures().max()), "give them in"),
        (torch.full((2, 3, 4, 4), math.nan), "not finite"),
        (torch.full((2, 3, 4, 4), math.inf), "not finite"),
        (torch.rand(3, 4, 4), r"images have shape \(3, 4, 4\); give \(batch, channel, height, width\)"),
        (torch.rand(0, 3, 4, 4), "batch >= 1"),
        (pictures(1), "images have 1 channel and the normalisation is for 3 channels"),
        (pictures().permute(0, 2, 3, 1), r"shape \(2, 4, 4, 3\), with the channels last.*permute\(0, 3, 1, 2\)"),
        (torch.rand(2, 28, 28, 1), "with the channels last"),
        ([np.zeros((3, 4, 4)), np.zeros((3, 5, 5))], "images are a list that is no array of numbers"),
        ("photos", "images have shape|no array of numbers"),
    ],
)  # fmt: skip
def test_images_that_are_no_batch_are_refused_by_every_client(send: Send, images: Any, words: str) -> None:
    with pytest.raises(UpdateError, match=words) as error:
        send(network(), images, LABELS)
    assert "\n" not in str(error.value)


@DOORS
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0]), r"labels have shape \(1,\) for 2 images"),
        (torch.tensor([[1, 0], [0, 1]]), r"labels have shape \(2, 2\) for 2 images"),
        (torch.tensor([0, -1]), "label of image 1 is -1"),
        (torch.tensor([-100, 1]), r"label of image 0 is -100; .*\(ignore_index\).*leave it out of the batch"),
        (torch.tensor([0, 10]), "label of image 1 is 10, and the model tells 10 classes apart.*from 0 to 9"),
        (torch.tensor([0.0, 1.0]), "labels have type float32; give one class index"),
        (torch.tensor([False, True]), "labels have type bool"),
        (["cat", "dog"], "no array of numbers"),
    ],
)
def test_labels_that_are_no_classes_are_refused_by_every_client(send: Send, labels: Any, words: str) -> None:
    with pytest.raises(UpdateError, match=words) as error:
        send(network(), pictures(), labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [[0, 1], (0, 1), np.array([0, 1]), LABELS.int(), LABELS.to(torch.uint8)])
@pytest.mark.parametrize("give", [lambda x: x, Tensor.numpy, list, lambda x: x.numpy().tolist(), Tensor.double])
def test_every_way_to_give_a_batch_gives_the_same_gradient(labels: Any, give: Callable[[Tensor], Any]) -> None:
    expected = capture_gradient(network(), pictures(), LABELS)
    update = capture_gradient(network(), give(pictures()), labels)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(update.gradients[name], gradient, rtol=1e-5, atol=1e-7)
    assert update.image_shape == (3, 4, 4)


def test_arrays_that_may_not_be_written_are_taken_without_a_warning() -> None:
    images = pictures().numpy()
    images.setflags(write=False)
    found, labels = as_batch(images, LABELS, IMAGENET)
    assert torch.equal(found, pictures())
    assert labels.dtype is torch.int64


def test_rounding_above_one_is_no_fault() -> None:
    require_unit_range(torch.tensor([-1e-6, 1 + 1e-6]))
    with pytest.raises(UpdateError, match="the pixels span"):
        require_unit_range(torch.tensor([0.0, 1.0001]))


def test_grey_images_with_a_normalisation_of_their_own() -> None:
    update = capture_gradient(network(1), pictures(1), LABELS, normalisation=HALF)
    assert update.image_shape == (1, 4, 4)


def test_the_label_of_a_model_with_one_logit_is_not_held_for_a_class() -> None:
    def binary(logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())

    assert capture_gradient(network(classes=1), pictures(), LABELS, loss=binary).image_count == 2
    assert require_classes(torch.zeros(2, 1), LABELS).shape == (2, 1)

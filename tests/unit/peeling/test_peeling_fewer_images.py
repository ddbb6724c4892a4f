"""Batches in which an image is there more than once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from gradinversion.audit import psnr
from gradinversion.capture import CapturedUpdate, LocalTraining, capture_gradient, told, train_locally
from gradinversion.coordinator import AttackConfig
from gradinversion.peeling.fewer_images import with_copies
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.images_shown import images_shown
from gradinversion.peeling.recovery import recover_images
from gradinversion.peeling.wording import repeated, summary
from gradinversion.target.preparation import Preparation, prepare
from torch import Tensor, nn

PIXELS = 8


class Residual(nn.Module):
    """So few places for its channels that all of it follows from linear equations."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.halved = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.quartered = nn.Conv2d(64, 64, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(64, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        value = F.relu(self.quartered(F.relu(self.halved(F.relu(self.stem(images))))))
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(value))) + value).mean((2, 3)))


def _images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    blotches = 3 * torch.randn(count, 3, 3, 3, generator=generator)
    grain = 0.3 * torch.randn(count, 3, PIXELS, PIXELS, generator=generator)
    return torch.sigmoid(F.interpolate(blotches, PIXELS, mode="bilinear", align_corners=True) + grain)


def _batch(which: list[int]) -> Tensor:
    return _images(max(which) + 1)[which]


def _pixels(found: Preparation, update: CapturedUpdate) -> Tensor:
    assert found.target.anchor is not None
    return update.normalisation.invert(found.target.anchor.activations.float()).clamp(0, 1)


@pytest.mark.parametrize(
    ("which", "labels", "words"),
    [
        ([0, 1, 0], [8, 1, 8], "that of label 8 is there twice"),
        ([0, 1, 0], [8, 1, 5], "one is there twice with the labels 5 and 8"),
        ([0, 1, 0, 1], [8, 1, 8, 1], "that of label 1 is there twice and that of label 8 is there twice"),
        ([0, 0, 0], [4, 4, 4], "that of label 4 is there 3 times"),
    ],
)
def test_images_that_repeat_are_recovered_as_often_as_they_are_there(
    which: list[int], labels: list[int], words: str
) -> None:
    model, images = Residual().eval(), _batch(which)
    update = capture_gradient(model, images, torch.tensor(labels))
    found = prepare(update, model, AttackConfig().request)
    assert found.labels.labels.tolist() == sorted(labels)
    pixels = _pixels(found, update)
    for image, label in zip(images, labels, strict=True):
        own = pixels[found.labels.labels == label]
        assert float(psnr(own, image.expand_as(own)).min()) > 60
    assert found.peeling is not None
    shown = len(set(which))
    assert found.peeling.image_count == shown
    some = f"{shown} different images" if shown > 1 else "one image alone"
    assert f"The gradient shows {some} where the facts state {len(which)}" in repeated(found.peeling)
    said = [words, " and ".join(reversed(words.split(" and ")))]
    assert any(one in summary(found.peeling) for one in said)
    assert found.limits == ()
    assert found.target.update.image_count == len(which)


def test_of_an_image_without_a_part_in_the_gradient_nothing_is_claimed() -> None:
    model, images = Residual().eval(), _images(2)
    update = capture_gradient(model, images, torch.tensor([8, 1]))
    # As a mean over three, of which the third has a gradient of zero.
    gradients = {name: one * 2 / 3 for name, one in update.gradients.items()}
    update = CapturedUpdate(
        gradients, update.image_shape, update.model_id, update.weight_hash, update.facts.stating(image_count=told(3))
    )
    found = prepare(update, model, AttackConfig().request)
    pixels = _pixels(found, update)
    best = torch.stack([psnr(pixels, image.expand_as(pixels)).max() for image in images])
    assert float(best.min()) > 60
    assert found.peeling is not None
    assert "1 more image has no part in the gradient" in repeated(found.peeling)
    assert len(found.limits) == 1
    assert "Of the 3 images that the facts state 1 is not looked for" in found.limits[0]
    error = with_copies(recover_images(update, model)).error
    assert error is not None
    assert error.isfinite().tolist() == [True, True, False]


def test_an_image_with_a_faint_part_in_the_gradient_does_not_hide_the_others() -> None:
    model, images, labels = Residual().eval(), _images(3), torch.tensor([3, 1, 2])
    update = capture_gradient(model, images, labels)
    losses = F.cross_entropy(model(update.normalisation.apply(images)), labels, reduction="none")
    made = torch.autograd.grad((losses * torch.tensor([1, 1, 4e-6])).mean(), list(model.parameters()))
    gradients = dict(zip(dict(model.named_parameters()), made, strict=True))
    found = prepare(replace(update, gradients=gradients), model, AttackConfig().request)
    pixels = _pixels(found, update)
    best = torch.stack([psnr(pixels, image.expand_as(pixels)).max() for image in images])
    assert float(best[:2].min()) > 60
    assert len(found.limits) == 1
    # The features of all three are known, of the faint one less well.
    assert found.known is not None
    assert len(found.known.activations) == 3


def test_an_image_that_the_network_is_very_sure_of_is_no_second_copy_of_another() -> None:
    model, images, labels = Residual().eval(), _images(4), torch.tensor([3, 1, 2, 5])
    features: list[Tensor] = []
    hook = model.fc.register_forward_pre_hook(lambda _, given: features.append(given[0].detach()))
    with torch.no_grad():
        model(capture_gradient(model, images, labels).normalisation.apply(images))
        hook.remove()
        wanted = torch.eye(10)[labels] * torch.tensor([1.0, 1.0, 10.0, 22.0])[:, None]
        model.fc.weight.add_(torch.linalg.lstsq(features[-1], wanted).solution.T)
    update = capture_gradient(model, images, labels)
    found = prepare(update, model, AttackConfig().request)
    assert found.peeling is not None
    assert found.peeling.repeats is not None
    assert found.peeling.repeats.times == (1, 1, 1)
    assert not found.peeling.repeats.sure
    assert found.limits
    assert any("1 more image may be a copy of these" in message for message in found.messages)
    assert not any("there twice" in message or "These are the images:" in message for message in found.messages)


@pytest.mark.parametrize("factor", [0.4, 0.47])
def test_images_that_all_repeat_are_so_behind_a_factor_of_all(factor: float) -> None:
    model, images = Residual().eval(), _batch([0, 1, 0, 1])
    update = capture_gradient(model, images, torch.tensor([8, 1, 8, 1]))
    update = replace(update, gradients={name: factor * one for name, one in update.gradients.items()})
    found = prepare(update, model, AttackConfig().request)
    assert found.labels.labels.tolist() == [1, 1, 8, 8]
    assert found.peeling is not None
    assert found.peeling.repeats is not None
    assert (found.peeling.repeats.times, found.peeling.repeats.sure) == ((2, 2), False)
    assert found.target.anchor is not None
    assert found.target.anchor.scales == pytest.approx([factor] * 4, rel=1e-2)
    assert found.limits


@pytest.mark.parametrize("classes", [10, 4])
def test_more_images_than_were_told_are_attacked(classes: int) -> None:
    # With four classes the final layer tells no more than three images apart; the taps do.
    model, images = Residual(classes).eval(), _images(3)
    labels = torch.tensor([3, 1, 2])
    update = capture_gradient(model, images, labels).stating(image_count=told(2))
    found = prepare(update, model, AttackConfig(labels="1,2").request)
    assert any("3 are attacked" in message for message in found.messages)
    assert any("labels that were given are those of 2 images" in message for message in found.messages)
    assert found.labels.labels.tolist() == [1, 2, 3]
    assert found.target.update.image_count == 3
    # Each counts as in a mean over three.
    assert found.limits == ()
    pixels = _pixels(found, update)
    best = torch.stack([psnr(pixels, image.expand_as(pixels)).max() for image in images])
    assert float(best.min()) > 60


def test_more_images_than_were_told_may_be_more_still_where_they_repeat() -> None:
    model, which = Residual().eval(), [0, 1, 2, 3, 0]
    update = capture_gradient(model, _batch(which), torch.tensor(which)).stating(image_count=told(3))
    found = prepare(update, model, AttackConfig().request)
    assert found.target.update.image_count == 4
    assert len(found.limits) == 1
    assert "4 images is a lower bound" in found.limits[0]


def test_one_local_step_of_more_images_than_were_told_stays_one() -> None:
    model = Residual().eval()
    update = train_locally(model, _images(6), torch.arange(6), local=LocalTraining(0.01, 1, 6))
    assert update.facts.local is not None
    local = replace(update.facts.local, batch_size=told(3))
    update = replace(update, facts=replace(update.facts, image_count=told(3), local=local))
    found = prepare(update, model, AttackConfig(labels="0,1,2").request)
    assert found.target.update.local is None
    assert found.target.update.image_count == 6
    assert found.labels.labels.tolist() == list(range(6))
    assert "one step" in found.training
    assert not any("2 local steps" in message for message in found.messages)
    stated = {fact.name: fact.words for fact in found.facts}
    assert (stated["image_count"], stated["batch_size"]) == ("6", "6")


def test_taps_show_different_images() -> None:
    model = Residual().eval()
    update = capture_gradient(model, _batch([0, 1, 0, 2]), torch.tensor([0, 1, 0, 2]))
    graph = network_graph(model, update.image_shape, update.batch_norm, 4)
    assert isinstance(graph, Graph)
    assert images_shown(graph, update.gradients, 4) == 3
    noise = {name: torch.randn_like(one) for name, one in update.gradients.items()}
    assert images_shown(graph, noise, 4) is None

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradinversion.audit.truth import tell_truth
from gradinversion.capture import (
    CapturedUpdate,
    LocalTraining,
    OneLook,
    PrivateBatch,
    capture_gradient,
    told,
    train_locally,
)
from gradinversion.capture.facts import all_assumed
from gradinversion.target import weigh_evidence
from gradinversion.target.image_count import check_image_count
from gradinversion.target.shown_images import _repeats
from torch import Tensor, nn

CLASSES = 10


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    pooled = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*pooled, nn.Linear(128, CLASSES)).eval()


def _images(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def _update(model: nn.Module, images: Tensor) -> CapturedUpdate:
    return capture_gradient(model, images, torch.arange(len(images)) % CLASSES)


def _told(update: CapturedUpdate, count: int) -> CapturedUpdate:
    return update.stating(image_count=told(count))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_right_number_is_not_spoken_of(model: nn.Module, count: int) -> None:
    found = check_image_count(_update(model, _images(count)), model, OneLook())
    assert (found.messages, found.contradictions, found.facts) == ((), {}, {})


@pytest.mark.parametrize("stated", [1, 4])
def test_more_images_than_stated_are_attacked(model: nn.Module, stated: int) -> None:
    found = check_image_count(_told(_update(model, _images(5)), stated), model, OneLook())
    assert found.facts["image_count"].value == 5
    assert f"that of 5 images or more, and the facts state {stated}; 5 are attacked" in found.messages[0]
    assert not found.contradictions
    assert "5 images is a lower bound" in found.limits[0]


def test_one_local_step_stays_one(model: nn.Module) -> None:
    update = train_locally(model, _images(6), torch.arange(6), local=LocalTraining(0.01, 1, 6))
    assert update.facts.local is not None
    local = replace(update.facts.local, batch_size=told(3))
    update = replace(update, facts=replace(update.facts, image_count=told(3), local=local))
    found = check_image_count(update, model, OneLook())
    assert (found.facts["image_count"].value, found.facts["batch_size"].value) == (6, 6)


@pytest.mark.parametrize(("off", "sure"), [(0.01, True), (0.06, False)])
def test_numbers_of_copies_that_only_a_large_error_allows_are_not_sure(off: float, sure: bool) -> None:
    found = _repeats([(2 + off) * 2 / 3, (1 - off) * 2 / 3], [0, 1], 3, error=0.02)
    assert found is not None
    assert (found.times, found.sure) == ((2, 1), sure)


def test_fewer_private_images_than_the_update_shows_are_not_those_behind_it(model: nn.Module) -> None:
    private = PrivateBatch(_images(5)[:3], torch.arange(3), ("a", "b", "c"))
    said = tell_truth(model, private, _told(_update(model, _images(5)), 3))
    assert "they are 3, and it is of 5 or more" in said


def test_a_number_that_nobody_told_is_read(model: nn.Module) -> None:
    update = _told(_update(model, _images(5)), 3)
    update = replace(update, facts=all_assumed(update.facts, "the usual"))
    evidence = weigh_evidence(update, model)
    assert evidence.update.image_count == 5
    assert "image_count" not in evidence.contradictions
    assert any("5 are attacked" in message for message in evidence.messages)


def test_fewer_images_than_stated_are_spoken_of(model: nn.Module) -> None:
    found = check_image_count(_told(_update(model, _images(3)), 6), model, OneLook())
    assert not found.contradictions
    assert "shows 3 images where the facts state 6" in found.limits[0]


def test_an_image_that_comes_twice_counts_once(model: nn.Module) -> None:
    images = _images(4)
    images[3] = images[0]
    found = check_image_count(_update(model, images), model, OneLook())
    assert "shows 3 images where the facts state 4: images repeat" in found.limits[0]
    assert "told.image_count=3 has it look for each of them once" in found.limits[0]


@pytest.mark.parametrize("count", [9, 12])
def test_as_many_images_as_classes_are_not_counted(model: nn.Module, count: int) -> None:
    assert not check_image_count(_told(_update(model, _images(count)), 4), model, OneLook()).contradictions


@pytest.mark.parametrize("kind", ["noise", "half", "pruned"])
def test_what_was_coarsened_on_the_way_shows_no_more_images(model: nn.Module, kind: str) -> None:
    """Noise has every rank."""
    update = _update(model, _images(3))
    random = torch.Generator().manual_seed(0)
    gradients = {}
    for name, gradient in update.gradients.items():
        size = gradient.square().mean().sqrt()
        changed = {
            "noise": gradient + 1e-4 * size * torch.randn(gradient.shape, generator=random),
            "half": gradient.half(),
            "pruned": gradient * (gradient.abs() > 0.5 * size),
        }
        gradients[name] = changed[kind]
    found = check_image_count(replace(update, gradients=gradients), model, OneLook())
    assert not found.contradictions

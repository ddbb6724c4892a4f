"""An update whose tensors fit may still claim more than any memory holds: it is refused before anything is made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradinversion.capture import BatchNormMode, CapturedUpdate, UpdateError, capture_gradient, room, told
from gradinversion.target.preparation import prepare
from gradinversion.target.request import Request
from gradinversion.target.room import require_room
from torch import nn


@pytest.fixture
def pooling() -> nn.Module:
    """Takes images of any size."""
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(16, 2)).eval()


@pytest.fixture
def update(pooling: nn.Module) -> CapturedUpdate:
    return capture_gradient(pooling, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))


def claiming(update: CapturedUpdate, count: int, side: int) -> CapturedUpdate:
    return replace(update, image_shape=(3, side, side), facts=update.facts.stating(image_count=told(count)))


@pytest.mark.parametrize(("count", "side"), [(65_536, 8), (1, 8_192), (64, 8_192), (65_536, 8_192)])
def test_a_claim_beyond_the_memory_is_refused_in_a_sentence(
    pooling: nn.Module, update: CapturedUpdate, monkeypatch: pytest.MonkeyPatch, count: int, side: int
) -> None:
    monkeypatch.setattr(room, "machine_bytes", lambda: 100_000_000)
    with pytest.raises(UpdateError, match=f"claims {count:,} images of 3 x {side} x {side}: .* GB at once") as refused:
        prepare(claiming(update, count, side), pooling, Request())
    assert "has 0.1 GB" in str(refused.value)
    require_room(claiming(update, 2, 64), pooling, Request())


def test_a_batch_that_is_attacked_in_parts_needs_room_for_one_of_them(
    pooling: nn.Module, update: CapturedUpdate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "machine_bytes", lambda: 100_000_000)
    large = claiming(update, 64, 128)
    with pytest.raises(UpdateError, match=r"lower agents\.images_at_once \(now all 64\), or take a larger machine"):
        require_room(large, pooling, Request())
    with pytest.raises(UpdateError, match=r"lower agents\.images_at_once \(now 60\), or take"):
        require_room(large, pooling, Request(images_at_once=60))
    require_room(large, pooling, Request(images_at_once=4))
    with pytest.raises(UpdateError, match=r"too\), or take a larger machine"):
        require_room(claiming(update, 1, 4_096), pooling, Request(images_at_once=4))


@pytest.mark.parametrize("mode", [BatchNormMode.TRAIN_SHARED, BatchNormMode.TRAIN_PRIVATE])
def test_a_batch_whose_images_depend_on_each_other_needs_room_for_all_of_it(
    pooling: nn.Module, monkeypatch: pytest.MonkeyPatch, mode: BatchNormMode
) -> None:
    monkeypatch.setattr(room, "machine_bytes", lambda: 100_000_000)
    together = capture_gradient(pooling, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), batch_norm=mode)
    for request in (Request(), Request(images_at_once=4)):
        with pytest.raises(UpdateError, match=r"claims 64 images .*too\), or take a larger machine"):
            prepare(claiming(together, 64, 128), pooling, request)
    # Without batch norm's statistics they do not, whatever the mode.
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)).eval()
    apart = capture_gradient(plain, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), batch_norm=mode)
    require_room(claiming(apart, 64, 128), plain, Request(images_at_once=4))


def test_a_batch_whose_labels_are_optimised_too_needs_room_for_all_of_it(
    pooling: nn.Module, update: CapturedUpdate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "machine_bytes", lambda: 100_000_000)
    with pytest.raises(UpdateError, match=r"claims 64 images .*too\), or take a larger machine"):
        prepare(claiming(update, 64, 128), pooling, Request(labels="joint", images_at_once=4))

"""An update whose tensors fit may still claim more than any memory holds: it is refused before anything is made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradinversion.capture import CapturedUpdate, UpdateError, capture_gradient, told
from gradinversion.target import room
from gradinversion.target.preparation import prepare
from gradinversion.target.request import Request
from torch import Tensor, nn


@pytest.fixture
def pooling() -> nn.Module:
    """Takes images of any size."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).eval()


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
    room.require_room(claiming(update, 2, 64), pooling)


def test_what_the_layers_give_is_counted_without_making_it(pooling: nn.Module, update: CapturedUpdate) -> None:
    pixels = 8_192**2
    # Convolution, batch norm and ReLU of four channels; behind the pooling four, four and two numbers.
    assert room.activation_bytes(claiming(update, 3, 8_192), pooling) == 4 * 3 * (3 * 4 * pixels + 10)


def test_a_model_that_needs_numbers_is_not_counted(update: CapturedUpdate) -> None:
    class Counts(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * float(images.sum())

    assert room.activation_bytes(update, Counts()) == 0


def test_counting_changes_nothing_in_the_model(pooling: nn.Module, update: CapturedUpdate) -> None:
    pooling.train()
    before = {name: tensor.clone() for name, tensor in pooling.state_dict().items()}
    state = torch.get_rng_state()
    assert room.activation_bytes(update, pooling) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in pooling.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not module._forward_hooks for module in pooling.modules())


def test_this_machine_has_memory() -> None:
    assert 2**28 < room.machine_bytes() < 2**50

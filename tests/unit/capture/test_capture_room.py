"""A batch that no memory holds is refused before anything of it is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gradinversion.capture import ClientConfig, ClientError, load_model, room, simulate_client
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


def test_what_the_layers_give_is_counted_without_making_it(pooling: nn.Module) -> None:
    pixels = 8_192**2
    # Convolution, batch norm and ReLU of four channels; behind the pooling four, four and two numbers.
    assert room.activation_bytes(pooling, (3, 8_192, 8_192), 3) == 4 * 3 * (3 * 4 * pixels + 10)


def test_what_is_done_in_place_is_counted_once(pooling: nn.Module) -> None:
    assert isinstance(pooling, nn.Sequential)
    pooling[2] = nn.Sequential(nn.ReLU(inplace=True), nn.Identity(), nn.Dropout(0.5)).eval()
    assert room.activation_bytes(pooling, (3, 16, 16), 2) == 4 * 2 * (2 * 4 * 16**2 + 10)


def test_a_model_that_needs_numbers_is_not_counted() -> None:
    class Counts(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * float(images.sum())

    assert room.activation_bytes(Counts(), (3, 8, 8), 2) == 0


def test_counting_changes_nothing_in_the_model(pooling: nn.Module) -> None:
    pooling.train()
    before = {name: tensor.clone() for name, tensor in pooling.state_dict().items()}
    state = torch.get_rng_state()
    assert room.activation_bytes(pooling, (3, 8, 8), 2) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in pooling.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not module._forward_hooks for module in pooling.modules())


def test_this_machine_has_memory() -> None:
    assert 2**28 < room.machine_bytes() < 2**50


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"batch_size": 8},
            "8 images of 3 x 512 x 512 in convnet takes at .*smaller client.batch_size or client",
        ),
        ({"batch_size": 1}, "1 images of .*; give a smaller client.image_size, or take"),
        ({"batch_size": 8, "local_epochs": 1, "local_batch_size": 2}, "2 images .*smaller client.local_batch_size or"),
    ],
)
def test_a_client_that_no_memory_holds_is_refused_before_its_images_are_read(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr(room, "machine_bytes", lambda: 20_000_000)
    with pytest.raises(ClientError, match=sentence):
        simulate_client(ClientConfig(image_size=512, images="no such folder", **settings), seed=0)


def test_steps_of_a_few_images_fit_where_all_of_them_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    one = room.activation_bytes(load_model("convnet"), (3, 32, 32), 1)
    monkeypatch.setattr(room, "machine_bytes", lambda: 3 * one)
    with pytest.raises(ClientError, match="4 images"):
        simulate_client(ClientConfig(batch_size=4), seed=0)
    simulate_client(ClientConfig(batch_size=4, local_epochs=1, local_batch_size=1), seed=0)

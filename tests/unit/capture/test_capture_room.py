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


def really_kept(model: nn.Module, images: Tensor) -> int:
    """Bytes that a forward pass on numbers keeps for its gradient, without the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept = dict[int, torch.UntypedStorage]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images.clone())
    return sum(storage.nbytes() for storage in kept.values())


def test_what_a_gradient_needs_is_counted_without_making_it(pooling: nn.Module) -> None:
    pixels = 8_192**2
    # Pixels, convolution (which the batch norm keeps too) and ReLU of four channels; behind the pooling four numbers.
    least = 4 * 3 * ((3 + 2 * 4) * pixels + 4)
    found = room.kept_bytes(pooling, (3, 8_192, 8_192), 3, by_pixels=False)
    # Some versions keep a mean and a deviation of each channel besides.
    assert least <= found <= least + 1_000


@pytest.mark.parametrize("by_pixels", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["convnet", "cifar_resnet18", "resnet18"])
def test_the_count_is_what_a_pass_on_numbers_keeps(name: str, frozen: bool, by_pixels: bool) -> None:
    model = load_model(name)
    if frozen:
        model.requires_grad_(False)
        *_, last = [module for module in model.modules() if isinstance(module, nn.Linear)]
        last.requires_grad_(True)
    found = room.kept_bytes(model, (3, 32, 32), 2, by_pixels=by_pixels)
    real = really_kept(model, torch.rand(2, 3, 32, 32, requires_grad=by_pixels))
    assert real <= found <= 1.1 * real


def test_frozen_layers_in_front_keep_nothing_for_a_client_and_all_for_an_attack() -> None:
    model = load_model("resnet18")
    whole = room.kept_bytes(model, (3, 128, 128), 24, by_pixels=False)
    model.requires_grad_(False)
    model.get_submodule("fc").requires_grad_(True)
    # What the last layer reads: 512 numbers of each image.
    assert room.kept_bytes(model, (3, 128, 128), 24, by_pixels=False) == 4 * 24 * 512
    assert 0.9 * whole < room.kept_bytes(model, (3, 128, 128), 24, by_pixels=True) <= whole


@pytest.mark.parametrize("by_pixels", [False, True])
def test_what_is_done_in_place_is_counted_once(pooling: nn.Module, by_pixels: bool) -> None:
    assert isinstance(pooling, nn.Sequential)
    before = room.kept_bytes(pooling, (3, 16, 16), 2, by_pixels=by_pixels)
    pooling[2] = nn.Sequential(nn.ReLU(inplace=True), nn.Identity(), nn.Dropout(0.5)).eval()
    assert room.kept_bytes(pooling, (3, 16, 16), 2, by_pixels=by_pixels) == before
    pooling.insert(0, nn.ReLU(inplace=True))
    assert room.kept_bytes(pooling, (3, 16, 16), 2, by_pixels=by_pixels) == before


def test_a_model_that_needs_numbers_is_not_counted() -> None:
    class Counts(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * float(images.sum())

    assert room.kept_bytes(Counts(), (3, 8, 8), 2, by_pixels=True) == 0


def test_counting_changes_nothing_in_the_model(pooling: nn.Module) -> None:
    pooling.train()
    before = {name: tensor.clone() for name, tensor in pooling.state_dict().items()}
    state = torch.get_rng_state()
    assert room.kept_bytes(pooling, (3, 8, 8), 2, by_pixels=True) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in pooling.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in pooling.parameters())


def test_this_machine_has_memory() -> None:
    assert 2**28 < room.machine_bytes() < 2**50


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        # The gradient: its images alone would fit.
        ({"batch_size": 4}, "gradient of 4 images of 3 x 512 x 512 in convnet takes .*smaller client.batch_size or c"),
        ({"batch_size": 1, "image_size": 1024}, "of 1 images of .*; give a smaller client.image_size, or take"),
        ({"batch_size": 4, "local_epochs": 1, "local_batch_size": 3}, "3 images .*smaller client.local_batch_size or"),
        # The images: no smaller step, and no smaller batch of some of the clients, makes them fit.
        (
            {"batch_size": 512, "local_epochs": 1, "local_batch_size": 4},
            "to hold the simulated client's 512 images of 3 x 512 x 512 takes .*smaller client.batch_size or client.im",
        ),
        (
            {"batch_size": 2, "clients": 8},
            "16 images .*smaller client.batch_size or client.clients or client.image_size, or take",
        ),
        ({"batch_size": 1, "clients": 16}, "16 images .*smaller client.clients or client.im"),
        ({"batch_size": 1, "image_size": 2048}, "hold the .* 1 images .*; give a smaller client.image_size, or take"),
    ],
)
def test_a_client_that_no_memory_holds_is_refused_before_its_images_are_read(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr(room, "machine_bytes", lambda: 70_000_000)
    settings = {"image_size": 512} | settings
    with pytest.raises(ClientError, match=sentence):
        simulate_client(ClientConfig(images="no such folder", **settings), seed=0)


def test_steps_of_a_few_images_fit_where_all_of_them_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    one = room.kept_bytes(load_model("convnet"), (3, 32, 32), 1, by_pixels=False)
    monkeypatch.setattr(room, "machine_bytes", lambda: 3 * one)
    with pytest.raises(ClientError, match="4 images"):
        simulate_client(ClientConfig(batch_size=4), seed=0)
    simulate_client(ClientConfig(batch_size=4, local_epochs=1, local_batch_size=1), seed=0)

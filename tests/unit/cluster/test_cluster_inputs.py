"""The update and the model of a run beside its checkpoints: the same again, or refused by name."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from gradinversion.capture import CapturedUpdate, ModelError, ModelSource, UpdateError, capture_gradient, weight_hash
from gradinversion.cluster.inputs import load_inputs, store_inputs
from gradinversion.coordinator import Storage, StorageError
from torch import nn

SOURCE = ModelSource("convnet", classes=4, image_size=8)
FILES = {"update.safetensors": UpdateError, "model.safetensors": ModelError}


@pytest.fixture
def model() -> nn.Module:
    model = SOURCE.load()
    with torch.no_grad():  # as after training: not what the source alone would build
        for parameter in model.parameters():
            parameter.add_(0.1)
    return model


@pytest.fixture
def update(model: nn.Module) -> CapturedUpdate:
    images, normalisation = torch.rand(2, 3, 8, 8), ((0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
    return capture_gradient(model, images, torch.tensor([1, 3]), normalisation=normalisation)


@pytest.fixture
def folder(update: CapturedUpdate, model: nn.Module, tmp_path: Path) -> Path:
    store_inputs(Storage(tmp_path), update, model)
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_they_come_back_bit_for_bit(update: CapturedUpdate, model: nn.Module, tmp_path: Path, place: str) -> None:
    storage = Storage(tmp_path if place == "disk" else "memory://inputs/out")
    store_inputs(storage, update, model)
    found, again = load_inputs(storage, SOURCE)
    assert found.gradients.keys() == update.gradients.keys()
    assert all(torch.equal(found.gradients[name], gradient) for name, gradient in update.gradients.items())
    assert (found.image_shape, found.normalisation) == (update.image_shape, update.normalisation)
    assert weight_hash(again) == weight_hash(model) != weight_hash(SOURCE.load())
    assert again.state_dict().keys() == model.state_dict().keys()
    assert not again.training
    found.require_match(again)


def test_storing_changes_nothing_of_the_model(update: CapturedUpdate, model: nn.Module, folder: Path) -> None:
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    update.require_match(model)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_weights_that_share_memory_can_be_stored(tmp_path: Path, update: CapturedUpdate) -> None:
    twice = nn.Linear(3, 3)
    store_inputs(Storage(tmp_path), update, nn.Sequential(twice, twice))
    found = safetensors.torch.load_file(tmp_path / "checkpoints" / "model.safetensors")
    assert torch.equal(found["0.weight"], found["1.weight"])


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "torn": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"more",
    "pickle": lambda content: pickle.dumps({"a": 1}),
    "foreign": lambda content: safetensors.torch.save({"a": torch.zeros(2)}),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_by_the_name_it_has_in_the_storage(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(FILES[name]) as error:
        load_inputs(Storage(folder.parent), SOURCE)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(StorageError, match=name):
        load_inputs(Storage(folder.parent), SOURCE)


def test_weights_of_another_model_are_refused_with_every_difference(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.safetensors' do not fit the model") as error:
        load_inputs(Storage(folder.parent), ModelSource("convnet", classes=7, image_size=8))
    assert str(error.value).count("has shape") == 2  # weight and bias of the last layer


@pytest.mark.parametrize("shape", [(1, 8, 12), (4, 8, 8)])
def test_a_model_of_other_images_is_built_again_elsewhere(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    source = pickle.loads(pickle.dumps(ModelSource("convnet", 17, shape, 3)))
    model, half = source.load(), (0.5,) * shape[0]
    update = capture_gradient(model, torch.rand(1, *shape), torch.tensor([16]), normalisation=(half, half))
    store_inputs(Storage(tmp_path), update, model)
    found, again = load_inputs(Storage(tmp_path), source)
    assert found.image_shape == shape
    found.require_match(again)

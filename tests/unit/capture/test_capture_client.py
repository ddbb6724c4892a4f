"""The simulated client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import (
    IMAGENET,
    CapturedUpdate,
    ClientConfig,
    ClientError,
    Defence,
    Normalisation,
    PrivateBatch,
    UpdateError,
    capture_gradient,
    simulate_client,
)
from gradinversion.refusal import ConfigError
from torch import nn


def test_captured_gradient_is_backwards_gradient_and_the_model_is_untouched() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).train()
    images, labels = torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 2, 2, 0])
    update = capture_gradient(model, images, labels, normalisation=((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    F.cross_entropy(model((images - 0.5) / 0.25), labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(update.gradients[name], parameter.grad)
    assert update.image_count == 5
    assert update.image_shape == (3, 2, 2)
    assert update.normalisation == Normalisation((0.5,) * 3, (0.25,) * 3)
    assert update.loss == "cross_entropy"
    assert update.model_id == "Sequential"
    assert update.mismatches(model) == []


def test_unused_and_frozen_parameters() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    model.register_parameter("idle", nn.Parameter(torch.ones(2)))
    model[1].bias.requires_grad_(False)
    update = capture_gradient(model, torch.rand(1, 3, 2, 2), torch.tensor([0]))
    assert set(update.gradients) == {"idle", "1.weight"}
    assert torch.equal(update.gradients["idle"], torch.zeros(2))
    assert update.mismatches(model) == []


def test_default_client_is_a_function_of_the_seed_and_saves(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    config = ClientConfig(defence="noise", defence_strength=0.1)
    first, model, private = simulate_client(config, seed=0)
    second, _, _ = simulate_client(config, seed=0)
    third, _, _ = simulate_client(config, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(g, second.gradients[name]) for name, g in first.gradients.items())
    assert first.weight_hash != third.weight_hash
    assert first.defences == (Defence("noise", 0.1),)
    assert not model.training
    assert private.names == ("astronaut", "chelsea", "coffee", "rocket")
    assert private.labels.tolist() == [0, 1, 2, 3]
    first.save(tmp_path / "u.safetensors")
    CapturedUpdate.load(tmp_path / "u.safetensors").require_match(model)


def test_shared_batch_norm_survives_the_file(tmp_path: Path) -> None:
    update, model, _ = simulate_client(ClientConfig(bn="train_shared", labels="3,3,0,9"), seed=0)
    update.save(tmp_path / "u.safetensors")
    loaded = CapturedUpdate.load(tmp_path / "u.safetensors")
    loaded.require_match(model)
    assert loaded.buffers is not None
    assert int(loaded.buffers["1.num_batches_tracked"]) == 1
    assert not torch.equal(loaded.buffers["1.running_mean"], model.get_buffer("1.running_mean"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch_size": 12, "labels": "unique"}, "12 images and 10 classes"),
        ({"image_width": 3}, "client.image_width is 3; it must be at least 4, or 0 for square images"),
        ({"channels": 0}, "client.channels is 0"),
        ({"channels": 0, "mean": (0.5,), "std": (0.5,)}, "client.channels is 0; it must be from 1 to 64"),
        ({"channels": 10**11, "mean": (0.5,), "std": (0.5,)}, "client.channels is 100000000000; it must be from 1 to"),
        ({"mean": (0.5,) * 2, "std": (0.5,) * 2}, "client.mean has 2 numbers and client.std 2; give one per channel"),
        ({"mean": (0.5,)}, "client.mean has 1 numbers and client.std 0"),
        ({"mean": (0.5,), "std": (0.0,)}, "every deviation finite and above 0"),
        ({"mean": (0.5,) * 3}, "client.mean has 3 numbers and client.std 0"),
        ({"mean": (0.5,) * 3, "std": (0.5, 0.0, 0.5)}, "every deviation finite and above 0"),
        ({"labels": "0,1,2"}, "lists 3 labels for 4 images"),
        ({"labels": "0,1,2,10"}, "names class 10"),
        ({"labels": "0,1,,2"}, "whole numbers"),
        ({"labels": "0,1,2,-1"}, "whole numbers"),
        ({"labels": "cat,dog,0,1"}, "whole numbers"),
        ({"labels": "²,0,0,1"}, "whole numbers"),
        ({"bn": "train"}, "client.bn is 'train'; use one of eval, train_shared, train_private"),
        ({"batch_size": 0}, "client.batch_size is 0"),
        ({"classes": 1}, "client.classes is 1"),
        ({"image_size": 2}, "client.image_size is 2"),
        ({"image_size": 8193}, "client.image_size is 8193; it must be at most 8192"),
        ({"image_width": 10**8}, "client.image_width is 100000000; it must be at most 8192"),
        ({"batch_size": 2**15, "clients": 3, "labels": "auto"}, "are 98304 images; an update is of at most 65536"),
        ({"defence": "fog"}, "defence is 'fog'"),
        ({"defence": "noise"}, "'noise' is 0"),
    ],
)
def test_bad_settings_are_one_sentence_each(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ClientConfig(**settings)


@pytest.mark.parametrize(("channels", "std"), [(3, (0.25,)), (3, (0.25,) * 3), (4, (0.25,)), (1, (0.25,))])
def test_one_number_of_the_normalisation_holds_for_every_channel(channels: int, std: tuple[float, ...]) -> None:
    client = ClientConfig(channels=channels, mean=(0.5,), std=std)
    assert client.normalisation == Normalisation((0.5,) * channels, (0.25,) * channels)


def test_more_photos_than_classes_are_refused_when_the_labels_are_chosen() -> None:
    with pytest.raises(ClientError, match="12 images and 10 classes"):
        simulate_client(ClientConfig(batch_size=12), seed=0)


@pytest.mark.parametrize(
    ("settings", "shape", "mean"),
    [
        ({"channels": 1, "image_size": 28}, (1, 28, 28), (0.0,)),
        ({"image_size": 24, "image_width": 40}, (3, 24, 40), IMAGENET.mean),
        ({"channels": 1, "image_size": 12, "mean": (0.13,), "std": (0.31,)}, (1, 12, 12), (0.13,)),
    ],
)
def test_a_client_of_images_that_are_no_rgb_squares(
    settings: dict[str, Any], shape: tuple[int, int, int], mean: tuple[float, ...]
) -> None:
    update, model, private = simulate_client(ClientConfig(batch_size=2, **settings), seed=0)
    assert update.image_shape == shape == tuple(private.images.shape[1:])
    assert update.normalisation.mean == mean
    assert update.mismatches(model) == []
    by_hand = capture_gradient(model, private.images, private.labels, normalisation=update.normalisation)
    assert all(torch.equal(g, by_hand.gradients[name]) for name, g in update.gradients.items())


@pytest.mark.wrong_shapes
def test_the_private_batch_is_a_door_for_images_too() -> None:
    with pytest.raises(UpdateError, match=r"private pixels span 0 to 255; give them in \[0, 1\]"):
        PrivateBatch(torch.tensor([0.0, 255.0]).view(1, 1, 1, 2), torch.tensor([0]), ("a",))
    with pytest.raises(UpdateError, match="1 images, 2 labels and 1 names"):
        PrivateBatch(torch.rand(1, 3, 4, 4), torch.tensor([0, 1]), ("a",))


def test_all_bad_settings_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        ClientConfig(classes=0, bn="x", defence="fog")
    first, second, third = caught.value.problems
    assert "client.classes is 0" in first
    assert "client.bn is 'x'" in second
    assert third.startswith("client.defence=fog: the defence is 'fog'")


@pytest.mark.parametrize(("model", "trained"), [("timm:resnet10t", False), ("convnet", False), ("own:build", None)])
def test_a_named_model_without_weights_counts_as_untrained(model: str, trained: bool | None) -> None:
    assert ClientConfig(model=model).trained is trained
    assert ClientConfig(model=model, weights="weights.pt").trained is True

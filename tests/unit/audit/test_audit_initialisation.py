"""Whether weights are a fresh initialisation is read off them, not off there being a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from gradinversion.audit import WeightState, weight_state
from gradinversion.audit.initialisation import compare_weights
from gradinversion.capture import ClientConfig, load_model
from torch import nn

FILE = "weights.pt"


def plain(seed: int) -> nn.Module:
    """Torch's default initialisation and no batch norm."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


def normalised(seed: int) -> nn.Module:
    """Batch norm, and weights from a normal distribution."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    nn.init.kaiming_normal_(model.get_parameter("0.weight"))
    nn.init.zeros_(model.get_parameter("0.bias"))
    return model


def train(model: nn.Module, steps: int = 1, rate: float = 0.01) -> nn.Module:
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimiser.zero_grad()
        images = torch.rand(8, 3, 8, 8, generator=generator)
        F.cross_entropy(model(images), torch.arange(8)).backward()
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize("build", [plain, normalised])
@pytest.mark.parametrize("seed", range(12))
def test_fresh_weights_of_any_seed_are_fresh(build: Callable[[int], nn.Module], seed: int) -> None:
    assert compare_weights(build(seed), build) is WeightState.FRESH


def test_a_trained_network_is_known_by_weights_and_statistics() -> None:
    assert compare_weights(train(normalised(3)), normalised) is WeightState.TRAINED


def test_statistics_that_were_counted_no_batch_still_count() -> None:
    """As converted weights have them."""
    model = train(normalised(3), 5)
    model.get_buffer("1.num_batches_tracked").zero_()
    assert compare_weights(model, normalised) is WeightState.TRAINED


def test_images_that_only_went_through_it_did_not_train_it() -> None:
    model = normalised(3)
    model.train()(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert compare_weights(model.eval(), normalised) is WeightState.RUN


def test_without_batch_norm_no_one_knows_why_weights_are_not_fresh() -> None:
    assert compare_weights(train(plain(3), 20, 0.1), plain) is WeightState.CHANGED
    other = plain(3)
    nn.init.normal_(other.get_parameter("0.weight"), std=0.5)
    assert compare_weights(other, plain) is WeightState.CHANGED


def test_a_model_whose_builder_fixes_its_weights_tells_nothing() -> None:
    assert compare_weights(train(plain(3)), lambda seed: plain(5)) is WeightState.UNKNOWN
    assert compare_weights(plain(3), normalised) is WeightState.UNKNOWN


def test_the_global_random_state_is_left_as_it_was() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    weight_state(load_model("convnet", seed=9), ClientConfig(weights=FILE), 32)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("seed", [0, 1_000_003])
def test_a_file_of_random_weights_is_not_called_trained(tmp_path: Path, seed: int) -> None:
    path = tmp_path / FILE
    torch.save(load_model("convnet", seed=seed).state_dict(), path)
    model = load_model("convnet", weights=str(path))
    state = weight_state(model, ClientConfig(weights=str(path)), 32)
    assert state is WeightState.FRESH
    assert "trained weights" not in state
    assert "cannot be told from a fresh initialisation" in state


def test_without_a_file_the_bundled_model_is_random() -> None:
    assert weight_state(load_model("convnet"), ClientConfig(), 32) is WeightState.RANDOM


def test_a_users_own_model_is_looked_at_too() -> None:
    client = ClientConfig(model="gradinversion.capture.models:convnet")
    assert weight_state(load_model(client.model, seed=4), client, 32) is WeightState.FRESH
    gone = ClientConfig(model="no.such.module:build")
    assert weight_state(plain(0), gone, 32) is WeightState.UNKNOWN

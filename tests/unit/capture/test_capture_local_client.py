"""The simulated client that trains before it sends, and what the server reads off its weight delta."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.capture import (
    CapturedUpdate,
    ClientConfig,
    Defence,
    LabelError,
    LocalTraining,
    UpdateError,
    UpdateKind,
    as_gradient,
    assumed,
    capture_gradient,
    estimate_learning_rate,
    load_model,
    mean_gradients,
    recover_labels,
    simulate_client,
    train_locally,
)
from gradinversion.refusal import ConfigError
from torch import Tensor, nn

LABELS = torch.tensor([0, 3, 5, 6])


@pytest.fixture
def model() -> nn.Module:
    return load_model("convnet", classes=10, image_size=16)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 16, 16)


def delta(model: nn.Module, images: Tensor, local: LocalTraining, **facts: Any) -> CapturedUpdate:
    return train_locally(model, images, LABELS, local=local, **facts)


@pytest.mark.parametrize("batch_norm", ["eval", "train_shared", "train_private"])
def test_one_step_is_the_gradient_up_to_the_rounding_of_the_weights(
    model: nn.Module, images: Tensor, batch_norm: str
) -> None:
    rate, decay = 0.1, 0.01
    gradient = capture_gradient(model, images, LABELS, batch_norm=batch_norm)
    sent = delta(model, images, LocalTraining(rate, weight_decay=decay), batch_norm=batch_norm)
    assert sent.kind is UpdateKind.WEIGHT_DELTA
    found = as_gradient(sent, model)
    weights = dict(model.named_parameters())
    for name, expected in gradient.gradients.items():
        # The step is made in a handful of float32 operations on numbers of the weights' size.
        allowed = 4 * torch.finfo(torch.float32).eps * (float(weights[name].detach().abs().max()) / rate + 1)
        assert float((found.gradients[name] - expected).abs().max()) <= allowed
    if batch_norm == "train_shared":
        assert sent.buffers is not None
        assert gradient.buffers is not None
        for name, buffer in gradient.buffers.items():
            torch.testing.assert_close(sent.buffers[name], buffer)


def test_training_by_hand_gives_the_same_weights(model: nn.Module, images: Tensor) -> None:
    sent = delta(model, images, LocalTraining(0.1, epochs=2, batch_size=3))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    by_hand = load_model("convnet", classes=10, image_size=16)
    for _ in range(2):
        for chosen in ([0, 1, 2], [3]):
            step = capture_gradient(by_hand, images[chosen], LABELS[chosen])
            with torch.no_grad():
                for name, parameter in by_hand.named_parameters():
                    parameter.sub_(0.1 * step.gradients[name])
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(sent.gradients[name], parameter.detach() - weights[name], rtol=1e-4, atol=1e-6)


def test_the_servers_model_is_left_as_it_was(model: nn.Module, images: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    delta(model, images, LocalTraining(0.1, epochs=2), batch_norm="train_shared")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_running_statistics_move_at_every_step(model: nn.Module, images: Tensor) -> None:
    once, twice = (
        delta(model, images, LocalTraining(1e-6, epochs=epochs), batch_norm="train_shared") for epochs in (1, 2)
    )
    assert once.buffers is not None
    assert twice.buffers is not None
    # From 0, with momentum 0.1: 0.1 of the batch's mean after one step, 0.19 after two.
    torch.testing.assert_close(
        twice.buffers["1.running_mean"], 1.9 * once.buffers["1.running_mean"], rtol=1e-3, atol=1e-5
    )
    assert int(twice.buffers["1.num_batches_tracked"]) == 2


def test_a_shuffled_client_draws_its_orders_from_the_generator(model: nn.Module, images: Tensor) -> None:
    local = LocalTraining(0.1, epochs=3, batch_size=2, shuffled=True)
    first, again, other = (
        delta(model, images, local, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.gradients["0.weight"], again.gradients["0.weight"])
    assert not torch.equal(first.gradients["0.weight"], other.gradients["0.weight"])


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_labels_are_read_off_a_delta(model: nn.Module, images: Tensor, epochs: int) -> None:
    sent = delta(model, images, LocalTraining(0.02, epochs=epochs, batch_size=2 if epochs > 1 else None))
    found = recover_labels(sent, model)
    assert torch.equal(found.labels, LABELS)
    assert any("approximation" in line for line in found.warnings) is (epochs > 1)


def test_repeated_labels_are_read_off_a_delta_with_a_learning_rate_that_is_not_known(
    model: nn.Module, images: Tensor
) -> None:
    labels = torch.tensor([2, 2, 7, 2])
    sent = train_locally(model, images, labels, local=LocalTraining(0.003, epochs=2))
    assert sent.local is not None
    found = recover_labels(sent.stating(learning_rate=assumed(None)), model)
    assert sorted(found.labels.tolist()) == [2, 2, 2, 7]
    assert any("estimated learning rate" in line for line in found.warnings)


@pytest.mark.parametrize("rate", [0.003, 0.1])
@pytest.mark.parametrize(("epochs", "momentum"), [(1, 0.0), (4, 0.0), (4, 0.5)])
def test_learning_rate_is_estimated_on_an_untrained_model(
    model: nn.Module, images: Tensor, rate: float, epochs: int, momentum: float
) -> None:
    sent = delta(model, images, LocalTraining(rate, epochs=epochs, momentum=momentum))
    assert estimate_learning_rate(sent, model) == pytest.approx(rate, rel=0.01)


def test_learning_rate_is_estimated_by_its_order_alone_where_features_move(model: nn.Module, images: Tensor) -> None:
    sent = delta(model, images, LocalTraining(0.01, epochs=4), batch_norm="train_private")
    assert 0.005 < estimate_learning_rate(sent, model) < 0.02


def test_without_an_absent_class_the_learning_rate_is_asked_for(images: Tensor) -> None:
    model = load_model("convnet", classes=4, image_size=16)
    sent = train_locally(model, images, torch.arange(4), local=LocalTraining(0.01))
    assert sent.local is not None
    unknown = sent.stating(learning_rate=assumed(None))
    with pytest.raises(LabelError, match="some class has no image"):
        recover_labels(unknown, model)
    with pytest.raises(UpdateError, match="not known; estimate it first"):
        mean_gradients(unknown)


def test_what_cannot_be_trained_is_a_sentence(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(UpdateError, match="local batch size is 5 and it has 4 images"):
        delta(model, images, LocalTraining(0.1, batch_size=5))
    with pytest.raises(UpdateError, match="without a learning rate"):
        delta(model, images, LocalTraining(None))
    with pytest.raises(UpdateError, match="not finite"):
        delta(model, images, LocalTraining(1e30, epochs=3))
    with pytest.raises(UpdateError, match="give one per image"):
        train_locally(model, images, LABELS[:2], local=LocalTraining(0.1))
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4))
    with pytest.raises(UpdateError, match="at least 2 values per feature"):
        # Four images in batches of three leave a last batch of one.
        delta(pooled, images, LocalTraining(0.1, batch_size=3), batch_norm="train_shared")


def test_simulated_client_sends_a_delta_only_when_asked() -> None:
    plain, _, _ = simulate_client(ClientConfig(batch_size=2, image_size=16), 0)
    assert plain.kind is UpdateKind.GRADIENT
    config = ClientConfig(batch_size=2, image_size=16, local_epochs=2, local_batch_size=1, learning_rate=0.05)
    sent, model, _ = simulate_client(config, 0)
    sent.require_match(model)
    assert sent.local == LocalTraining(0.05, epochs=2, batch_size=1)
    hidden, _, _ = simulate_client(replace(config, learning_rate_known=False, defence="clip", defence_strength=1e-3), 0)
    assert hidden.local == LocalTraining(None, epochs=2, batch_size=1)
    assert hidden.defences == (Defence("clip", 0.001),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_epochs": -1}, "client.local_epochs is -1"),
        ({"local_epochs": 20_000}, "at most 10,000 can be retraced"),
        ({"local_batch_size": 2}, "client.local_batch_size=2 is of local training alone"),
        ({"local_epochs": 1, "local_batch_size": 5}, "client.local_batch_size is 5; it must be between 1 and"),
        ({"local_epochs": 1, "local_batch_size": -2}, "client.local_batch_size is -2"),
        ({"local_epochs": 1, "learning_rate": 0.0}, "client.learning_rate is 0.0"),
        ({"local_epochs": 1, "learning_rate": float("nan")}, "client.learning_rate is nan"),
        ({"local_epochs": 1, "momentum": 1.5}, "client.momentum is 1.5"),
        ({"local_epochs": 1, "weight_decay": -1.0}, "client.weight_decay is -1.0"),
    ],
)
def test_bad_local_settings_are_a_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ClientConfig(**settings)
    assert message in str(raised.value)

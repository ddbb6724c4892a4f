"""Defences that need the images: DP-SGD, Soteria, and averaging over clients."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import (
    ClientConfig,
    Defence,
    DefenceError,
    capture_gradient,
    load_model,
    simulate_client,
    told,
    train_locally,
)
from gradinversion.capture.client.dp_sgd import noisy_mean, spent_privacy
from gradinversion.capture.client.soteria import most_telling, soteria_gradient
from gradinversion.refusal import ConfigError
from torch import Tensor, nn


def _per_image() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"a": k * torch.randn(3, 4, generator=generator), "b": k * torch.randn(4, generator=generator)}
        for k in (0.1, 1, 9)
    ]


def _norm(gradients: dict[str, Tensor]) -> float:
    return float(torch.cat([g.flatten() for g in gradients.values()]).norm())


def test_each_image_is_clipped_on_its_own() -> None:
    images = _per_image()
    found = noisy_mean(images, 1.0, 0.0, None)
    expected = {
        name: sum(g[name] * min(1.0, 1.0 / _norm(g)) for g in images) / 3  # the smallest is left as it is
        for name in ("a", "b")
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert _norm(images[0]) < 1 < _norm(images[1])


def test_the_noise_of_dp_sgd_has_the_stated_size_and_is_reproducible() -> None:
    images = [{"a": torch.zeros(200, 100)}] * 4
    first = noisy_mean(images, 0.5, 2.0, torch.Generator().manual_seed(3))["a"]
    assert float(first.std()) == pytest.approx(2.0 * 0.5 / 4, rel=0.02)
    assert torch.equal(first, noisy_mean(images, 0.5, 2.0, torch.Generator().manual_seed(3))["a"])


@pytest.mark.filterwarnings("ignore")
def test_dp_sgd_is_the_step_of_opacus() -> None:
    opacus = pytest.importorskip("opacus")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    per_image = [capture_gradient(model, x[None], y[None]).gradients for x, y in zip(images, labels, strict=True)]
    ours = noisy_mean(per_image, 0.3, 0.0, None)
    sampled = opacus.GradSampleModule(model, strict=False)
    optimizer = opacus.optimizers.DPOptimizer(
        torch.optim.SGD(sampled.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=0.3, expected_batch_size=6
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = (images - mean[:, None, None]) / std[:, None, None]
    F.cross_entropy(sampled(inputs), labels).backward()
    optimizer.pre_step()
    for name, parameter in sampled.named_parameters():
        torch.testing.assert_close(ours[name.removeprefix("_module.")], parameter.grad, rtol=1e-4, atol=1e-6)


def test_privacy_is_told_with_its_terms() -> None:
    pytest.importorskip("opacus")
    weak, strong = (spent_privacy(z, 0.01, 1000, 1e-5) for z in (0.6, 2.0))
    assert weak.endswith("at delta 1e-05 after 1,000 steps at sample rate 0.01, by Opacus's Renyi accountant")
    assert float(weak.split()[1]) > 2 * float(strong.split()[1]) > 0
    assert "infinite" in spent_privacy(0.0, 0.01, 1000, 1e-5)


def test_without_opacus_dp_sgd_works_and_says_what_epsilon_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    update, _, _ = simulate_client(ClientConfig(defence="dp_sgd", defence_strength=1.1), seed=0)
    assert update.defences == (Defence("dp_sgd", 1.1, (1.0,)),)
    assert update.facts.privacy.startswith("epsilon")
    assert "gradinversion[opacus]" in update.facts.privacy


def test_the_most_telling_features_have_the_largest_ratio() -> None:
    features = torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 0.0, 1.0, 1.0]])
    sensitivity = torch.tensor([[0.0, 1.0, 8.0, 6.0], [1.0, 0.0, 0.1, 1.0]])
    assert most_telling(features, sensitivity, 0.5).tolist() == [[False, True, False, True], [True, False, True, False]]
    assert most_telling(features, sensitivity, 0.01).sum(dim=1).tolist() == [1, 1]


def test_soteria_against_loops() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    inputs, labels = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.tensor([2, 0])
    name, found = soteria_gradient(model, inputs, labels, 0.3)
    expected = torch.zeros(3, 7, dtype=torch.float64)
    for x, y in zip(inputs, labels, strict=True):
        representation = model[:3](x[None])[0].detach()
        jacobian = torch.autograd.functional.jacobian(lambda z: model[:3](z[None])[0], x).flatten(1)
        ratio = representation.abs() / jacobian.norm(dim=1)
        representation[ratio.argsort(descending=True)[:2]] = 0
        residual = model(x[None])[0].softmax(0) - F.one_hot(y, 3)
        expected += residual.detach()[:, None] * representation / 2
    assert name == "3.weight"
    torch.testing.assert_close(found, expected)


def test_soteria_changes_one_tensor_of_the_update() -> None:
    plain, _, _ = simulate_client(ClientConfig(image_size=8), seed=0)
    defended, _, _ = simulate_client(ClientConfig(image_size=8, defence="soteria", defence_strength=0.2), seed=0)
    changed = [name for name, g in plain.gradients.items() if not torch.equal(g, defended.gradients[name])]
    assert changed == ["13.weight"]
    assert defended.defences == (Defence("soteria", 0.2),)


def _without_linear(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_soteria_needs_a_fully_connected_layer() -> None:
    model = _without_linear()
    with pytest.raises(ValueError, match="use a model that ends in one, or another defence"):
        soteria_gradient(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), 0.1)


@pytest.mark.parametrize("defence", [("none", 0.0), ("clip", 0.1), ("prune", 0.5)])
def test_the_server_sees_the_mean_of_the_clients(defence: tuple[str, float]) -> None:
    name, strength = defence
    config = ClientConfig(batch_size=2, clients=3, image_size=8, defence=name, defence_strength=strength)
    update, model, private = simulate_client(config, seed=0)
    assert update.image_count == len(private.images) == 6
    assert private.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert update.facts.clients == told(3)
    own, _, first = simulate_client(
        ClientConfig(batch_size=2, image_size=8, defence=name, defence_strength=strength), seed=0
    )
    assert torch.equal(private.images[:2], first.images)
    whole = capture_gradient(model, private.images, private.labels).gradients
    same = all(torch.allclose(g, whole[key], atol=1e-6) for key, g in update.gradients.items())
    assert same == (name == "none")  # a defended client acts before the sum, on its own images
    assert own.image_count == 2


def test_clients_that_train_send_the_mean_of_their_weights() -> None:
    config = ClientConfig(batch_size=4, clients=2, image_size=8, local_epochs=1, local_batch_size=2, learning_rate=0.1)
    update, model, batch = simulate_client(config, seed=0)
    assert (update.image_count, update.facts.clients) == (8, told(2))
    local = config.local_training()
    assert local is not None
    parts = [(batch.images[part], batch.labels[part]) for part in (slice(0, 4), slice(4, 8))]
    own = [train_locally(model, *part, local=local, normalisation=config.normalisation) for part in parts]
    for name, gradient in update.gradients.items():
        torch.testing.assert_close(gradient, (own[0].gradients[name] + own[1].gradients[name]) / 2)
    # Together they make the steps of one client with batches as large as all of theirs.
    assert update.local is not None
    assert (update.local.batch_size, update.local.steps(update.image_count)) == (4, 2)


def test_batches_of_all_clients_together_hold_no_more_than_there_are_images() -> None:
    config = ClientConfig(batch_size=10, image_size=8, local_epochs=1, local_batch_size=3, learning_rate=0.1)
    update, _, _ = simulate_client(config, 0)
    several = update.stating(clients=told(4))  # not as many images each
    assert several.local is not None
    assert several.local.batch_size == 10


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"clients": 0}, "client.clients is 0"),
        ({"clients": 3, "labels": "unique"}, "12 images and 10 classes"),
        ({"clients": 2, "bn": "train_shared"}, "belongs to no single batch; use client.bn=eval"),
        ({"defence": "dp_sgd", "bn": "train_private"}, "belongs to one image alone; use client.bn=eval"),
        ({"defence": "soteria", "defence_strength": 0.1, "local_epochs": 1}, "is simulated for a gradient"),
        ({"defence": "dp_sgd", "defence_clip": 0.0}, "client.defence_clip is 0"),
        ({"dp_sample_rate": 1.5}, "client.dp_sample_rate is 1.5"),
        ({"dp_delta": 0.0}, "client.dp_delta is 0"),
        ({"dp_steps": 0}, "client.dp_steps is 0"),
    ],
)
def test_bad_settings_are_one_sentence_each(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ClientConfig(**settings)


def test_a_defence_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(DefenceError, match="leaves nothing of the update but zeros; use a weaker one"):
        simulate_client(ClientConfig(image_size=8, defence="clip", defence_strength=1e-60), seed=0)


def test_a_network_loaded_by_name_is_enough_for_soteria_in_train_mode() -> None:
    model = load_model("convnet", image_size=8)
    name, found = soteria_gradient(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), 0.1, "train_private")
    assert name == "13.weight"
    assert bool(torch.isfinite(found).all())

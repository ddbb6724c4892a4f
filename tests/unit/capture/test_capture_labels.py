"""Labels read off the gradient: exact where the theory says so, honest where it does not."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import (
    IMAGENET,
    ClientConfig,
    LabelError,
    RecoveredLabels,
    apply_defence,
    capture_gradient,
    load_images,
    load_model,
    recover_labels,
    simulate_client,
    told,
)
from gradinversion.capture.labels.counts import estimate_counts, round_counts
from gradinversion.capture.labels.final_layer import FinalLayer, find_final_layer, natural_noise
from torch import Tensor, nn

REPEATS = [1, 1, 2, 5, 5, 5, 7, 8]
MANY = torch.randint(0, 10, (24,), generator=torch.Generator().manual_seed(24)).tolist()


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return load_images("photos", 24, 32)[0]


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, int], nn.Module]:
    return {(name, k): load_model(name, k) for name in ("convnet", "resnet18") for k in (10, 100)}


def hits(found: RecoveredLabels, truth: list[int]) -> int:
    """Instances recovered: the size of the intersection as multisets."""
    return sum(min(found.labels.tolist().count(k), truth.count(k)) for k in set(truth))


@pytest.mark.parametrize("network", [("convnet", 10), ("convnet", 100), ("resnet18", 10), ("resnet18", 100)])
@pytest.mark.parametrize("mode", ["eval", "train_shared"])
@pytest.mark.parametrize(
    "truth", [[0, 1, 2, 3, 4, 5, 6, 7], REPEATS, [3] * 8, MANY], ids=["unique", "repeats", "same", "24"]
)
def test_counts_are_exact_on_random_weights(
    network: tuple[str, int], mode: str, truth: list[int], photos: Tensor, models: dict[tuple[str, int], nn.Module]
) -> None:
    model = models[network]
    update = capture_gradient(model, photos[: len(truth)], torch.tensor(truth), batch_norm=mode)
    for method in ("counts", "auto"):
        found = recover_labels(update, model, method)
        assert found.labels.tolist() == sorted(truth)
        assert found.confidence.shape == (len(truth),)
        assert float(found.confidence.min()) > 0.4
        assert float(found.confidence.max()) <= 1


@pytest.mark.parametrize("network", [("convnet", 10), ("resnet18", 100)])
def test_one_image(network: tuple[str, int], photos: Tensor, models: dict[tuple[str, int], nn.Module]) -> None:
    update = capture_gradient(models[network], photos[:1], torch.tensor([7]))
    for method in ("minimum", "counts", "auto"):
        found = recover_labels(update, models[network], method)
        assert found.labels.tolist() == [7]
        assert found.confidence.tolist() == [1.0]


def test_papers_rule_is_right_on_unique_labels_and_auto_uses_it(
    photos: Tensor, models: dict[tuple[str, int], nn.Module]
) -> None:
    truth = [9, 0, 4, 6]
    update = capture_gradient(models["resnet18", 10], photos[:4], torch.tensor(truth))
    paper, auto = (recover_labels(update, models["resnet18", 10], method) for method in ("minimum", "auto"))
    assert paper.labels.tolist() == auto.labels.tolist() == sorted(truth)
    assert auto.method == "minimum"
    assert paper.warnings == ()
    assert paper.confidence.tolist() == [1.0] * 4


def test_papers_rule_says_that_repeats_break_it(photos: Tensor, models: dict[tuple[str, int], nn.Module]) -> None:
    update = capture_gradient(models["convnet", 10], photos[:8], torch.tensor(REPEATS))
    found = recover_labels(update, models["convnet", 10], "minimum")
    assert hits(found, REPEATS) == 5
    assert any("only 5 classes" in line and "assumption of 'minimum' fails" in line for line in found.warnings)
    sure = {label for label, c in zip(found.labels.tolist(), found.confidence.tolist(), strict=True) if c > 0.5}
    assert sure == set(REPEATS)
    assert float(found.confidence.min()) == 0
    assert recover_labels(update, models["convnet", 10]).method == "unmixing"


def test_papers_rule_refuses_more_images_than_classes(photos: Tensor, models: dict[tuple[str, int], nn.Module]) -> None:
    update = capture_gradient(models["convnet", 10], photos, torch.tensor(MANY))
    with pytest.raises(LabelError, match="24 images of 10 classes"):
        recover_labels(update, models["convnet", 10], "minimum")


@pytest.mark.parametrize("truth", [[0, 1, 2, 3], REPEATS])
def test_final_layer_without_bias(truth: list[int], photos: Tensor) -> None:
    torch.manual_seed(0)
    body = load_model("convnet")
    model = nn.Sequential(*list(body.children())[:-1], nn.Linear(2048, 10, bias=False))
    update = capture_gradient(model, photos[: len(truth)], torch.tensor(truth))
    assert recover_labels(update, model, "counts").labels.tolist() == sorted(truth)


def test_clipping_is_noticed_and_undone(photos: Tensor, models: dict[tuple[str, int], nn.Module]) -> None:
    model = models["resnet18", 10]
    update = capture_gradient(model, photos[:8], torch.tensor(REPEATS))
    clipped = replace(update, gradients=apply_defence(update.gradients, "clip", 0.01))
    assert recover_labels(clipped, model).labels.tolist() == REPEATS
    found = recover_labels(clipped, model, "counts")
    assert found.labels.tolist() == REPEATS
    assert any("clipping" in line for line in found.warnings)


def test_noise_lowers_the_confidence_and_raises_nothing(
    photos: Tensor, models: dict[tuple[str, int], nn.Module]
) -> None:
    model = models["convnet", 10]
    update = capture_gradient(model, photos[:8], torch.tensor(REPEATS))
    means = []
    for strength in (0.01, 1.0, 100.0):
        noisy = apply_defence(update.gradients, "noise", strength, torch.Generator().manual_seed(0))
        for method in ("counts", "minimum"):
            found = recover_labels(replace(update, gradients=noisy), model, method)
            assert len(found.labels) == 8
            assert any("changed after it was computed" in line for line in found.warnings)
            if method == "counts":
                means.append(float(found.confidence.mean()))
    assert means[0] > 0.95
    assert means[0] > means[1] > means[2]
    assert means[2] < 0.1


@pytest.mark.parametrize(("defence", "strength"), [("prune", 0.99), ("quantise", 1), ("clip", 1e-6)])
def test_no_defence_raises(
    defence: str, strength: float, photos: Tensor, models: dict[tuple[str, int], nn.Module]
) -> None:
    update = capture_gradient(models["convnet", 10], photos[:8], torch.tensor(REPEATS))
    defended = replace(update, gradients=apply_defence(update.gradients, defence, strength))
    for method in ("auto", "counts", "minimum"):
        found = recover_labels(defended, models["convnet", 10], method)
        assert found.labels.tolist() == sorted(found.labels.tolist())
        assert bool(((found.confidence >= 0) & (found.confidence <= 1)).all())


def test_a_gradient_of_zeros_gives_no_confidence(photos: Tensor, models: dict[tuple[str, int], nn.Module]) -> None:
    update = capture_gradient(models["convnet", 10], photos[:4], torch.arange(4))
    empty = replace(update, gradients={name: torch.zeros_like(g) for name, g in update.gradients.items()})
    for method in ("auto", "counts", "minimum"):
        assert float(recover_labels(empty, models["convnet", 10], method).confidence.max()) < 0.2


@pytest.fixture(scope="module")
def trained(photos: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained on shifted and mirrored photos, ten classes, and held-out views of them."""
    generator = torch.Generator().manual_seed(0)
    base = load_images("photos", 10, 48)[0]
    labels = torch.randint(0, 10, (600,), generator=generator)
    corners = torch.randint(0, 17, (600, 2), generator=generator)
    views = [base[k, :, i : i + 32, j : j + 32] for k, (i, j) in zip(labels, corners, strict=True)]
    images = torch.stack(views) * (0.6 + 0.4 * torch.rand(600, 1, 1, 1, generator=generator))
    model = load_model("convnet").train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(40):
        chosen = torch.arange(step * 12, step * 12 + 12)
        optimiser.zero_grad()
        F.cross_entropy(model(IMAGENET.apply(images[chosen])), labels[chosen]).backward()
        optimiser.step()
    return model.eval(), images[480:], labels[480:]


def test_a_trained_network_is_harder_and_it_is_said(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = trained
    with torch.no_grad():
        accuracy = float((model(IMAGENET.apply(images)).argmax(1) == labels).float().mean())
    assert accuracy > 0.6
    found_total, doubts = 0, 0
    for start in range(0, 96, 8):
        truth = labels[start : start + 8]
        update = capture_gradient(model, images[start : start + 8], truth)
        found = recover_labels(update, model)
        right = hits(found, truth.tolist())
        found_total += right
        if right < 8:
            doubts += 1
            assert found.warnings
            assert float(found.confidence.min()) < 0.9
    assert doubts > 0
    # A floor below what was measured.
    assert found_total / 96 > 0.6


def test_unique_labels_are_proven_even_on_a_trained_network(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = trained
    first = torch.stack([(labels == k).nonzero()[0, 0] for k in (0, 2, 3, 5, 8)])
    found = recover_labels(capture_gradient(model, images[first], labels[first]), model)
    assert found.labels.tolist() == [0, 2, 3, 5, 8]
    assert found.method == "minimum"


def test_negative_features_are_reported(photos: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.Tanh(), nn.Linear(64, 10))
    update = capture_gradient(model, photos[:4], torch.arange(4))
    assert any("can be negative" in line for line in recover_labels(update, model, "minimum").warnings)
    assert recover_labels(update, model).method == "counts"
    assert recover_labels(update, model).labels.tolist() == [0, 1, 2, 3]


def test_final_layer_is_found_by_what_it_computes(photos: Tensor) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3072, 10)
            self.spare = nn.Linear(3072, 10)

        def forward(self, images: Tensor) -> Tensor:
            self.spare(images.flatten(1))
            logits: Tensor = self.head(images.flatten(1))
            return logits

    torch.manual_seed(0)
    model = Named()
    update = capture_gradient(model, photos[:2], torch.tensor([4, 6]))
    layer = find_final_layer(update, model)
    torch.testing.assert_close(layer.weight, model.head.weight.detach().double())
    assert torch.equal(layer.weight_gradient, update.gradients["head.weight"].double())
    stripped = replace(update, gradients={"head.bias": update.gradients["head.bias"]})
    with pytest.raises(LabelError, match=r"lacks the gradient of the final layer head\.weight"):
        recover_labels(stripped, model)


def test_what_cannot_be_done_is_a_sentence(photos: Tensor) -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    update = capture_gradient(pooled, photos[:2], torch.tensor([0, 1]))
    with pytest.raises(LabelError, match="not the output of a fully connected layer"):
        recover_labels(update, pooled)
    with pytest.raises(LabelError, match="use one of auto, minimum, counts"):
        recover_labels(update, pooled, "magic")


@pytest.mark.parametrize("name", ["foreign: focal_loss", "mse_loss", "nll_loss"])
def test_labels_of_another_loss_are_not_guessed(
    name: str, photos: Tensor, models: dict[tuple[str, int], nn.Module]
) -> None:
    update = capture_gradient(models["convnet", 10], photos[:2], torch.tensor([0, 1]))
    with pytest.raises(LabelError, match=f"'{name}'; give the labels"):
        recover_labels(update.stating(loss=told(name)), models["convnet", 10])


def test_one_hot_binary_cross_entropy_shows_labels_that_differ(
    photos: Tensor, models: dict[tuple[str, int], nn.Module]
) -> None:
    model = models["convnet", 10]

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, nn.functional.one_hot(labels, 10).float())

    update = capture_gradient(model, photos[:3], torch.tensor([7, 0, 4]), loss=loss)
    assert recover_labels(update, model).labels.tolist() == [0, 4, 7]
    repeated = capture_gradient(model, photos[:3], torch.tensor([7, 0, 7]), loss=loss)
    with pytest.raises(LabelError, match="binary_cross_entropy_with_logits"):
        recover_labels(repeated, model)


@pytest.mark.parametrize("total", [0, 3_000, 65_536])
@pytest.mark.parametrize("offset", [-90_000.0, -3_000.0, 2_000.0, 90_000.0])
def test_counts_far_from_their_total_are_rounded_at_once(total: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(int(total + offset))
    estimate = (300 * torch.randn(40, generator=generator) + offset / 40).double()
    doubt = (0.5 + torch.rand(40, generator=generator)).double()
    lowest = torch.zeros(40, dtype=torch.float64)
    found = round_counts(estimate, total, lowest, doubt)
    assert float(found.sum()) == total
    assert float(found.min()) >= 0
    cost = ((found - estimate) / doubt).square().sum()
    for take, give in itertools.permutations(range(40), 2):
        if found[take] > 0:
            other = found.clone()
            other[take] -= 1
            other[give] += 1
            assert ((other - estimate) / doubt).square().sum() >= cost * (1 - 1e-12)


def test_labels_by_counts_of_the_largest_claim_end() -> None:
    model = load_model("convnet", 10)
    update = simulate_client(ClientConfig(), 0)[0].stating(image_count=told(65_536))
    assert len(recover_labels(update, model, "counts").labels) == 65_536


def test_round_counts_is_the_nearest_allowed_point() -> None:
    generator = torch.Generator().manual_seed(0)
    for trial in range(60):
        total = trial % 5 + 2
        estimate = total / 3 * (1 + torch.randn(3, generator=generator, dtype=torch.float64))
        lowest = torch.tensor([trial % 2, 0, (trial // 2) % 2]).double()
        doubt = torch.tensor([1.0, 1.0, 1.0 if trial % 3 else 4.0]).double()
        found = round_counts(estimate, total, lowest, doubt if trial % 3 == 0 else None)
        allowed = [
            torch.tensor(point).double()
            for point in itertools.product(range(total + 1), repeat=3)
            if sum(point) == total and all(a >= b for a, b in zip(point, lowest.tolist(), strict=True))
        ]
        nearest = min(float(((point - estimate) / doubt).square().sum()) for point in allowed)
        assert float(found.sum()) == total
        assert bool((found >= lowest).all())
        assert float(((found - estimate) / doubt).square().sum()) == pytest.approx(nearest)


@pytest.mark.parametrize(("sure", "seed"), [(0.4, 0), (0.4, 2), (0.9, 2)])
def test_counts_are_exact_where_the_network_puts_most_images_into_one_class(sure: float, seed: int) -> None:
    """As a random ResNet-50 does: of that class the mean output is hard to tell, and lengths of features scatter."""
    generator = torch.Generator().manual_seed(seed)
    direction = F.normalize(torch.rand(64, generator=generator), dim=0)
    weight = sure * torch.randn(200, 64, generator=generator)
    lengths = 10 + 3 * torch.randn(128, 1, generator=generator).clamp(-2, 2)
    features = lengths * (direction + 0.002 * torch.rand(128, 64, generator=generator))
    few = torch.randint(0, 200, (64,), generator=generator)
    labels = few[torch.randint(0, 64, (128,), generator=generator)]
    weight.requires_grad_()
    bias = torch.zeros(200, requires_grad=True)
    gradients = torch.autograd.grad(F.cross_entropy(features @ weight.T + bias, labels), [weight, bias])
    by_weight, by_bias = (g.double() for g in gradients)
    prior = 10 * direction[None].double()
    layer = FinalLayer(weight.detach().double(), bias.detach().double(), by_weight, by_bias, prior, non_negative=True)
    assert torch.equal(estimate_counts(layer, 128).counts, torch.bincount(labels, minlength=200).double())


def test_natural_noise_has_a_falling_spectrum_and_its_own_seed() -> None:
    state = torch.get_rng_state()
    noise = natural_noise(16, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(noise, natural_noise(16, (3, 32, 32)))
    power = torch.fft.fft2(noise).abs().square().mean(dim=(0, 1))
    assert float(power[0, 1]) > 10 * float(power[0, 8]) > 0

"""Features that the gradient determines, held against those of the private images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from gradinversion.audit import Leak, evaluate
from gradinversion.audit.feature_leak import FeatureLeak
from gradinversion.audit.features import measure_feature_leak
from gradinversion.audit.pool import load_pool
from gradinversion.capture import ClientConfig, PrivateBatch, capture_gradient, simulate_client
from gradinversion.coordinator import AttackConfig, Reconstruction
from gradinversion.peeling import PeelingConfig, recovery
from gradinversion.peeling.cut import NoCut
from gradinversion.target.preparation import prepare
from torch import nn

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what peeling does the features alone: images that have them take most of a minute, and are no matter here."""
    monkeypatch.setattr(recovery, "find_cut", lambda derivation: NoCut("not asked for"))


def leak(errors: tuple[float, ...], others: tuple[float, ...]) -> FeatureLeak:
    return FeatureLeak("the output of layer4.1.bn1", "the taps of layer4.1.conv2", errors, others)


def test_features_are_recognised_only_where_they_are_near_and_nothing_else_is() -> None:
    found = leak((1e-6, 0.02, 0.3, 1e-6), (0.4, 0.1, 4.0, float("inf")))
    assert found.recognised == (True, False, False, True)


def nothing_found(attack: Attack) -> tuple[Reconstruction, PrivateBatch]:
    reconstruction, private = attack()
    flat = torch.full_like(private.images, 0.5)
    return dataclasses.replace(reconstruction, images=flat, consensus=flat), private


def test_no_picture_but_features_is_a_leak(attack: Attack) -> None:
    report = evaluate(*nothing_found(attack), features=leak((1e-6,) * 4, (0.4,) * 4))
    assert report.verdict.leak is Leak.LEAKED
    assert report.verdict.headline == "No picture, but the features of all 4 images leaked"
    assert {image.verdict.leak for image in report.images} == {Leak.LEAKED}
    assert "features leaked: known to 1e-06" in report.images[0].verdict.headline
    assert all(image.by_features for image in report.images)
    some = evaluate(*nothing_found(attack), features=leak((1e-6, 0.5, 1e-6, 0.5), (0.4,) * 4))
    assert some.verdict.headline == "No picture, but the features of 2 of 4 images leaked"
    assert [image.verdict.leak for image in some.images] == [Leak.LEAKED, Leak.NONE, Leak.LEAKED, Leak.NONE]


def test_features_of_other_images_are_no_leak(attack: Attack) -> None:
    report = evaluate(*nothing_found(attack), features=leak((0.5,) * 4, (0.4,) * 4))
    assert report.verdict.leak is Leak.NONE


def test_pictures_that_leaked_stay_the_headline(attack: Attack) -> None:
    report = evaluate(*attack(), features=leak((1e-6,) * 4, (0.4,) * 4))
    assert report.verdict.headline == "All 4 images leaked"
    assert "layer4.1.conv2" not in report.verdict.detail


def test_what_peeling_came_to_is_held_against_the_images_too() -> None:
    update, network, private = simulate_client(ClientConfig(), 0)
    known = prepare(update, network, AttackConfig().request).known
    assert known is not None
    assert (known.way, known.output) == ("layer peeling", False)
    assert measure_feature_leak(network, private, update, known, None).recognised == (True,) * 4


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_an_untrained_residual_network_gives_every_image_away_by_its_features(model: str) -> None:
    client = ClientConfig(model=model, image_size=64, batch_size=3)
    update, network, private = simulate_client(client, 0)
    # Of a minute's work only what the taps take: how far peeling comes is no matter here.
    attack = AttackConfig(peeling=PeelingConfig(operations=1e10))
    known = prepare(update, network, attack.request).known
    assert known is not None
    assert known.way.startswith("the taps of layer")
    found = measure_feature_leak(network, private, update, known, load_pool("photos", private))
    assert found.recognised == (True, True, True)
    assert max(found.errors) < 1e-4
    assert max(found.errors) < 10 * known.error
    mixed = dataclasses.replace(private, images=private.images.flip(3))
    assert not any(measure_feature_leak(network, mixed, update, known, None).recognised)
    wrong = dataclasses.replace(known, activations=torch.rand_like(known.activations))
    assert not any(measure_feature_leak(network, private, update, wrong, None).recognised)


def test_a_weak_picture_and_some_pictures_are_named_in_the_headline(attack: Attack) -> None:
    reconstruction, private = attack()
    images = torch.full_like(private.images, 0.5)
    images[0] = reconstruction.images[reconstruction.labels.labels.tolist().index(int(private.labels[0]))]
    order = [private.labels.tolist().index(label) for label in reconstruction.labels.labels.tolist()]
    some = dataclasses.replace(reconstruction, images=images[order], consensus=images[order])
    report = evaluate(some, private, features=leak((1e-6,) * 4, (0.4,) * 4))
    assert report.verdict.headline == "1 of 4 images leaked, and the features of all 4 images"
    assert {image.verdict.leak for image in report.images} == {Leak.LEAKED}


def test_features_leak_whatever_became_of_the_descent(attack: Attack) -> None:
    reconstruction, private = attack(seeds=0)
    report = evaluate(reconstruction, private, features=leak((1e-6,) * 4, (0.4,) * 4))
    assert report.verdict.leak is Leak.LEAKED


class Alike(nn.Module):
    """Features that hardly differ from image to image, and a last layer that is called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 16, 3, 2, 1)
        nn.init.constant_(self.body.bias, 5.0)  # type: ignore[arg-type]
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x).relu().mean(dim=(2, 3))
        return torch.nn.functional.linear(features, self.head.weight, self.head.bias)


def test_another_image_is_not_recognised_for_want_of_others() -> None:
    torch.manual_seed(0)
    model = Alike().eval()
    ones, others = torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    update = capture_gradient(model, ones, torch.tensor([3]))
    known = prepare(update, model, AttackConfig().request).known
    assert known is not None
    assert known.module == "head"
    right = measure_feature_leak(model, PrivateBatch(ones, torch.tensor([3]), ("a",)), update, known, None)
    assert right.recognised == (True,)
    wrong = measure_feature_leak(model, PrivateBatch(others, torch.tensor([3]), ("b",)), update, known, None)
    assert wrong.recognised == (False,)


@pytest.mark.usefixtures("no_images")
def test_in_train_mode_a_pool_does_not_change_the_batch_statistics() -> None:
    update, network, private = simulate_client(ClientConfig(model="resnet18", image_size=32, bn="train_private"), 0)
    attack = AttackConfig(peeling=PeelingConfig(operations=1e11))
    known = prepare(update, network, attack.request).known
    assert known is not None
    for pool in (None, load_pool("photos", private)):
        assert measure_feature_leak(network, private, update, known, pool).recognised == (True,) * 4


@pytest.mark.usefixtures("no_images")
def test_a_mean_that_the_model_takes_behind_a_convolution_is_no_modules_input() -> None:
    torch.manual_seed(0)
    means = (nn.Conv2d(16, 32, 1), nn.AvgPool2d(2), nn.ReLU())
    body = (nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), *means, *body, *head).eval()
    private = PrivateBatch(torch.rand(2, 3, 16, 16), torch.tensor([1, 3]), ("a", "b"))
    update = capture_gradient(model, private.images, private.labels)
    found = prepare(update, model, AttackConfig(peeling=PeelingConfig(operations=1e11)).request)
    assert found.peeling is not None
    assert found.peeling.nearest is not None
    assert found.peeling.nearest.place == "the mean over windows of the input of 2"
    assert found.known is not None
    assert (found.known.module, found.known.output) == ("5", False)
    assert measure_feature_leak(model, private, update, found.known, None).recognised == (True, True)

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
from gradinversion.capture import ClientConfig, PrivateBatch, simulate_client
from gradinversion.coordinator import AttackConfig, Reconstruction
from gradinversion.coordinator.preparation import prepare

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]


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
    known = prepare(update, network, AttackConfig()).known
    assert known is not None
    assert (known.way, known.output) == ("layer peeling", False)
    assert measure_feature_leak(network, private, update, known, None).recognised == (True,) * 4


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_an_untrained_residual_network_gives_every_image_away_by_its_features(model: str) -> None:
    client = ClientConfig(model=model, image_size=64, batch_size=3)
    update, network, private = simulate_client(client, 0)
    known = prepare(update, network, AttackConfig()).known
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

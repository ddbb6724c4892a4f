"""The batch taken apart by the units that are shut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import (
    CapturedUpdate,
    LabelError,
    apply_defence,
    capture_gradient,
    load_images,
    load_model,
    recover_labels,
    unmix,
)
from gradinversion.capture.labels import unmixing
from gradinversion.capture.labels.unmixing import UnmixOnce
from torch import Tensor, nn

LABELS = ([3, 1, 4, 1, 5, 9], [7] * 6, [0, 1, 2, 3, 4, 5])


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return load_images("photos", 12, 32)[0]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load_model("convnet", 10)


def _sharpened(model: nn.Module, factor: float) -> nn.Module:
    """As after training: sure of every image, rightly or not."""
    changed = load_model("convnet", 10)
    with torch.no_grad():
        changed.get_parameter("13.weight").copy_(model.get_parameter("13.weight") * factor)
    return changed


def _capture(model: nn.Module, images: Tensor, labels: list[int]) -> CapturedUpdate:
    return capture_gradient(model, images[: len(labels)], torch.tensor(labels))


def _weight_gradient(update: CapturedUpdate) -> Tensor:
    return list(update.gradients.values())[-2]


def _features(model: nn.Module, update: CapturedUpdate, images: Tensor, count: int) -> Tensor:
    assert isinstance(model, nn.Sequential)
    with torch.no_grad():
        found: Tensor = model.double()[:-1](update.normalisation.apply(images[:count]).double())
    model.float()
    return F.normalize(found, dim=1)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("factor", [1.0, 30.0, 100.0])
def test_features_and_labels_of_every_image(labels: list[int], factor: float, photos: Tensor, model: nn.Module) -> None:
    network = _sharpened(model, factor)
    update = _capture(network, photos, labels)
    found = unmix(_weight_gradient(update), len(labels))
    assert found is not None
    assert sorted(found.labels.tolist()) == sorted(labels)
    assert float(found.purity.min()) > 0.99
    cosines = found.features @ _features(network, update, photos, len(labels)).T
    nearest, image = cosines.max(dim=1)
    assert sorted(image.tolist()) == list(range(len(labels)))
    assert [labels[k] for k in image.tolist()] == found.labels.tolist()
    assert float(nearest.min()) > 1 - 1e-6
    gradient = _weight_gradient(update).double()
    assert float((found.rows.T @ found.features - gradient).norm()) < 1e-4 * float(gradient.norm())


def test_twelve_images_of_two_labels(photos: Tensor) -> None:
    network = load_model("convnet", 20)
    update = _capture(network, photos, [3] * 7 + [11] * 5)
    found = recover_labels(update, network)
    assert found.method == "unmixing"
    assert found.labels.tolist() == [3] * 7 + [11] * 5
    assert float(found.confidence.min()) > 0.99


def test_clipping_changes_nothing(photos: Tensor, model: nn.Module) -> None:
    update = _capture(model, photos, LABELS[0])
    clipped = replace(update, gradients=apply_defence(update.gradients, "clip", 0.01))
    one, other = unmix(_weight_gradient(update), 6), unmix(_weight_gradient(clipped), 6)
    assert one is not None
    assert other is not None
    assert one.labels.tolist() == other.labels.tolist()
    assert torch.allclose(one.features, other.features, atol=1e-4)


def test_images_that_are_one_and_the_same_are_not_told_apart(photos: Tensor, model: nn.Module) -> None:
    twice = photos[[0, 1, 1, 2]]
    assert unmix(_weight_gradient(_capture(model, twice, [0, 1, 2, 3])), 4) is None


def test_noise_is_not_taken_for_images(photos: Tensor, model: nn.Module) -> None:
    update = _capture(model, photos, LABELS[0])
    random = torch.Generator().manual_seed(0)
    noisy = replace(update, gradients=apply_defence(update.gradients, "noise", 0.1, random))
    assert unmix(_weight_gradient(noisy), 6) is None
    assert unmix(torch.randn(10, 500, generator=torch.Generator().manual_seed(0)), 4) is None


def test_pooled_features_have_no_zeros_to_go_by(photos: Tensor) -> None:
    network = load_model("resnet18", 10, 64)
    images = F.interpolate(photos, scale_factor=2)
    assert unmix(_weight_gradient(_capture(network, images, [0, 1, 2, 3])), 4) is None


@pytest.mark.parametrize("noise", [1e-6, 1e-3])
@pytest.mark.parametrize("unit", [3, 40, 211])
def test_cutting_planes_find_the_facet_of_the_program_over_all_units(unit: int, noise: float) -> None:
    random = torch.Generator().manual_seed(unit)
    features = torch.randn(6, 900, generator=random, dtype=torch.float64).clamp_min(0)
    features += 0.1 * noise * torch.randn(features.shape, generator=random, dtype=torch.float64)
    basis = torch.linalg.svd(features, full_matrices=False)[2]
    some = torch.randperm(900, generator=random)[:48]
    cut = unmixing.find_facet(basis, unit, noise, some)
    whole = unmixing.find_facet(basis, unit, noise, torch.arange(900))
    assert cut is not None
    assert whole is not None
    first, second = (
        unmixing.polish_facet(basis, unmixing.sharpen(basis, facet) @ basis, noise)[0] for facet in (cut, whole)
    )
    assert torch.allclose(first, second, atol=1e-9)


@pytest.mark.parametrize("gradient", [torch.zeros(10, 40), torch.full((10, 40), torch.nan), torch.ones(3, 40)])
def test_nothing_is_found_in_nothing(gradient: Tensor) -> None:
    assert unmix(gradient, 4) is None


def test_asked_for_in_vain_it_says_what_it_needs(photos: Tensor, model: nn.Module) -> None:
    update = _capture(model, photos, list(range(10)))
    with pytest.raises(LabelError, match="fewer images than the 10 classes"):
        recover_labels(update, model, "unmixing")


@pytest.mark.parametrize("seed", range(5))
def test_an_image_below_the_rounding_of_the_others_is_not_invented(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(4, 400, generator=random).clamp_min(0).double()
    outputs = (3 * features @ torch.randn(10, 400, generator=random).double().T).softmax(dim=1)
    labels = (outputs.argmax(dim=1) + torch.tensor([1, 1, 1, 0])) % 10  # the last one the model is sure of
    rows = (outputs - F.one_hot(labels, 10)) / 4
    found = unmix(rows.T.float() @ features.float(), 4)
    assert found is None or sorted(found.labels.tolist()) == sorted(labels.tolist())


@pytest.mark.parametrize("seed", [24, 27])
def test_two_solutions_that_become_one_are_not_two_images(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    shut = torch.rand(5, 600, generator=random) < 0.97
    features = torch.randn(5, 600, generator=random).abs().masked_fill(shut, 0)
    rows = torch.randn(5, 10, generator=random).softmax(dim=1) - F.one_hot(torch.arange(5), 10)
    gradient = rows.T @ features
    noisy = gradient + 0.01 * gradient.square().mean().sqrt() * torch.randn(gradient.shape, generator=random)
    found = unmix(noisy, 5)
    assert found is None or bool(torch.isfinite(found.rows).all())


def test_one_gradient_is_taken_apart_once_whatever_the_smoothing(
    photos: Tensor, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = _weight_gradient(_capture(model, photos, LABELS[0]))
    plain, smoothed = unmix(gradient, 6), unmix(gradient, 6, 1.0)
    real, calls = unmixing._take_apart, list[Any]()

    def watched(*given: Any) -> Any:
        calls.append(given)
        return real(*given)

    monkeypatch.setattr(unmixing, "_take_apart", watched)
    once = UnmixOnce()
    for smoothing, expected in ((0.0, plain), (1.0, smoothed), (0.0, plain)):
        found = once(gradient, 6, smoothing)
        assert found is not None
        assert expected is not None
        assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ("rows", "purity", "labels"))
    assert len(calls) == 1
    once(gradient, 5)
    assert once(2 * gradient, 6) is not None
    assert len(calls) == 3

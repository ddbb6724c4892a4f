"""What weight gradients in front of a cut tell of values whose places are more than their equations."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import pytest
import torch
from gradinversion.capture import CapturedUpdate, capture_gradient
from gradinversion.peeling import PeelingConfig, decoded_start
from gradinversion.peeling.cut import (
    Cut,
    Descents,
    Projections,
    descents,
    find_cut,
    find_projections,
    refine,
    smooth_images,
)
from gradinversion.peeling.fewer_images import derive_shown
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.recovery import recover_images
from gradinversion.peeling.rules import Derivation
from torch import Tensor, nn

PIXELS, COUNT = 32, 3


def network() -> nn.Sequential:
    """Its second convolution reads 3 x 64 places and has 96 equations for each channel."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 4),
        nn.ReLU(),
        nn.Conv2d(16, 24, 2, 2),
        nn.ReLU(),
        nn.Conv2d(24, 96, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(96, 96, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


@dataclass(frozen=True)
class Case:
    model: nn.Module
    update: CapturedUpdate
    derivation: Derivation
    cut: Cut
    images: Tensor
    """As the model is given them, in the order of the derivation."""


@pytest.fixture(scope="module")
def case() -> Case:
    model = network().eval()
    images = torch.rand(COUNT, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(2))
    images = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    update = capture_gradient(model, images, torch.tensor([1, 4, 7]))
    derivation = derived(model, update)
    cut = find_cut(derivation)
    assert isinstance(cut, Cut)
    entering = update.normalisation.apply(images.double())
    found = cut.features(torch.float64, torch.device("cpu"))(entering)[0].flatten(1)
    order = torch.cdist(cut.places[0].values.flatten(1), found).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(COUNT))
    return Case(model, update, derivation, cut, entering[order])


def derived(model: nn.Module, update: CapturedUpdate) -> Derivation:
    graph = network_graph(model, update.image_shape, update.batch_norm, update.image_count)
    assert isinstance(graph, Graph)
    return derive_shown(graph, update, PeelingConfig(), lambda step, known: None)[0]


def value(case: Case, name: str, images: Tensor) -> Tensor:
    return case.cut.forward(torch.float64, torch.device("cpu"), [name])(images)[-1]


def only(found: tuple[Projections, ...]) -> Projections:
    (one,) = found
    return one


def test_they_hold_of_the_private_images_and_of_no_others(case: Case) -> None:
    found = only(find_projections(case.derivation, case.update, COUNT))
    assert found.readers == ("2",)
    places, directions = found.basis.shape
    assert places == COUNT * 64
    assert 48 <= directions <= 96
    assert float(found.off(value(case, found.value, case.images)).sqrt()) < 1e-4
    others = value(case, found.value, case.images + 0.1 * torch.randn_like(case.images))
    assert float(found.off(others).sqrt()) > 1e-2
    # Of the whole batch, in its order.
    swapped = value(case, found.value, case.images[[1, 0, 2]])
    assert float(found.off(swapped).sqrt()) > 1e-2


def test_they_are_left_out_where_they_take_more_than_is_allowed(case: Case) -> None:
    cost = 100 * (COUNT * 64) ** 3
    assert find_projections(case.derivation, case.update, COUNT, 0.99 * cost) == ()
    assert len(find_projections(case.derivation, case.update, COUNT, 1.01 * cost)) == 1


def test_directions_are_orthogonal_and_no_longer_than_one(case: Case) -> None:
    found = only(find_projections(case.derivation, case.update, COUNT))
    gram = found.basis.T @ found.basis
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-9, rtol=0)
    assert float(gram.diagonal().max()) <= 1 + 1e-9


@pytest.mark.parametrize(("noise", "fewer"), [(1e-4, False), (1e-2, True)])
def test_noise_leaves_weak_directions_out_and_what_is_left_is_still_about_right(
    case: Case, noise: float, fewer: bool
) -> None:
    random = torch.Generator().manual_seed(3)
    clean = only(find_projections(case.derivation, case.update, COUNT))
    gradient = case.update.gradients["2.weight"]
    off = noise * gradient.square().mean().sqrt() * torch.randn(gradient.shape, generator=random)
    # Equations that leave nothing of any right side show no noise; what is told of the derivative does.
    arriving = case.derivation.knowledge.arriving["2"]
    spread = noise * arriving.values.square().mean().sqrt() * torch.ones_like(arriving.values)
    knowledge = case.derivation.knowledge.with_arriving("2", replace(arriving, deviation=spread))
    update = replace(case.update, gradients={**case.update.gradients, "2.weight": gradient + off})
    found = only(find_projections(replace(case.derivation, knowledge=knowledge), update, COUNT))
    assert (found.basis.shape[1] < clean.basis.shape[1]) is fewer
    assert float(found.off(value(case, found.value, case.images)).sqrt()) < 0.3


def test_where_the_gradient_is_not_sent_or_comes_from_a_step_there_are_none(case: Case) -> None:
    gradients = {name: one for name, one in case.update.gradients.items() if name != "2.weight"}
    assert find_projections(case.derivation, replace(case.update, gradients=gradients), COUNT) == ()
    assert find_projections(case.derivation, replace(case.update, step_rate=0.1), COUNT) == ()


def test_a_descent_that_meets_them_is_nearer(case: Case) -> None:
    found = find_projections(case.derivation, case.update, COUNT)
    low, high = case.update.normalisation.bounds(dtype=torch.float64)
    start, plan = torch.zeros_like(case.images), Descents(200, 1, 0.07, (0.3, 0.1, 0.03, 0.01))
    without, *_ = smooth_images(case.cut, start, low, high, plan)
    images, misfit, _ = smooth_images(case.cut, start, low, high, plan, projections=found)
    assert float(misfit.max()) < 0.2
    (one,) = found
    assert float(one.off(value(case, one.value, images))) < float(one.off(value(case, one.value, without)))
    assert float((images - case.images).norm()) < float((without - case.images).norm())


def test_the_start_of_an_attack_says_whose_gradients_it_meets(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_start, "refine", functools.partial(refine, steps=5))
    monkeypatch.setattr(decoded_start, "descents", lambda cut: replace(descents(cut), steps=100))
    found = recover_images(case.update, case.model)
    assert found.images is None
    assert found.start is not None
    assert (
        "to have what the gradient of 2 tells of its input and to be smooth where that leaves it open" in found.message
    )
    assert "made by 5 descents to have them" in found.message

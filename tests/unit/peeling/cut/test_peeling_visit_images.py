"""Which image of a visit its step is made again with."""

from __future__ import annotations

from dataclasses import replace

import torch
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.cut.places import Cut, Place
from gradinversion.peeling.cut.step_again import feature_misfits, gradients_by_output
from gradinversion.peeling.cut.visit_images import StepByStep, _nearer
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.kinds import Rectifier
from gradinversion.peeling.local_steps import LocalSteps
from gradinversion.peeling.rules import Knowledge
from gradinversion.peeling.rules.knowledge import evenly
from torch import Tensor, nn

SIDE, ERROR = 6, 1e-6
NAMES = ["0.weight", "1.weight", "1.bias"]


def _cut(images: Tensor, error: float = ERROR) -> Cut:
    """Behind the first ReLU, with these images' features."""
    torch.manual_seed(0)
    front = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    back = [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * SIDE**2, 5)]
    graph = network_graph(nn.Sequential(*front, *back).eval(), (3, SIDE, SIDE), BatchNormMode.EVAL, len(images))
    assert isinstance(graph, Graph)
    rectifier = next(node for node in graph.nodes if isinstance(node.kind, Rectifier))
    nothing = torch.zeros(len(images), 8, SIDE, SIDE, dtype=torch.float64)
    errors = torch.full((len(images),), error, dtype=torch.float64)
    place = Place(rectifier.name, rectifier.inputs[0], nothing, nothing > 0, nothing, errors)
    cut = Cut(graph, (place,))
    values = cut.forward(torch.float64, torch.device("cpu"))(images)[0].clamp_min(0)
    return replace(cut, places=(replace(place, values=values, is_open=values > 0),))


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _off(images: Tensor, by: float) -> Tensor:
    random = torch.Generator().manual_seed(2)
    return images + by * torch.randn(images.shape, dtype=torch.float64, generator=random)


def test_a_rounded_image_may_be_off_by_more_than_one_that_was_found() -> None:
    """Rounded, it is exact or visibly worse; as it was found, it is as exact as it makes its features."""
    true = _images(1)
    cut, slightly = _cut(true), _off(true, 3e-5)
    assert 2 * ERROR < float(feature_misfits(cut, slightly)) < 1e-4
    for rounded, found, exact in (
        (true, slightly, True),
        (slightly, _off(true, 6e-5), True),
        (true, true, True),
        # No levels showed: it was not rounded.
        (slightly, slightly, False),
        (_off(true, 1e-2), slightly, False),
    ):
        own, is_exact = _nearer(cut, rounded, found)
        assert torch.equal(own, rounded)
        assert bool(is_exact) is exact


def test_an_image_is_as_it_was_found_where_rounding_spoilt_it() -> None:
    true = _images(2)
    rounded = torch.stack([_off(true, 1e-2)[0], true[1]])
    found = torch.stack([true[0], _off(true, 1e-2)[1]])
    own, exact = _nearer(_cut(true), rounded, found)
    assert torch.equal(own, true)
    assert exact.tolist() == [True, True]


def test_images_that_were_not_rounded_are_held_against_what_features_are_known_to() -> None:
    true = _images(2)
    found = torch.stack([true[0], _off(true, 3e-5)[1]])
    assert _nearer(_cut(true), found, found)[1].tolist() == [True, False]
    assert _nearer(_cut(true, error=1e-3), found, found)[1].tolist() == [True, True]


def _step(images: Tensor, whole: bool) -> tuple[StepByStep, dict[str, Tensor]]:
    """One step whose derivatives are known at the cut, and by the output too; and what the gradients are."""
    cut = _cut(images)
    random = torch.Generator().manual_seed(3)
    arriving = torch.randn(len(images), 5, dtype=torch.float64, generator=random)
    graph, (place,) = cut.graph, cut.places
    values = {graph.images: images}
    for node in graph.nodes:
        values[node.name] = node.kind.forward([values[name] for name in node.inputs], graph.tensors_of(node))
        if node.name == place.before:
            values[node.name] = values[node.name].detach().double().requires_grad_()
    (by_cut,) = torch.autograd.grad(values[graph.output], values[place.before], arriving)
    error = torch.full((len(images),), ERROR, dtype=torch.float64)
    known = Knowledge().with_arriving(place.before, evenly(by_cut, error, "told"))
    if whole:
        known = known.with_arriving(graph.output, evenly(arriving, error, "told"))
    gradients = dict(gradients_by_output(graph, NAMES, images, arriving))
    return StepByStep(cut, known, gradients, LocalSteps((len(images),), 0.1)), gradients


def test_a_step_is_made_of_exact_images_through_the_network_and_of_others_at_the_cut() -> None:
    images = _images(3)
    for whole in (True, False):
        step, true = _step(images, whole)
        for exact in ([True, True, True], [True, False, True], [False, False, False]):
            found = step._gradients(step.cut, images, torch.tensor(exact), 0)
            assert found is not None
            assert list(found) == NAMES
            for name in NAMES:
                torch.testing.assert_close(found[name], true[name], rtol=1e-6, atol=1e-8)


def test_a_step_whose_derivatives_are_not_known_is_not_made() -> None:
    images = _images(2)
    step, _ = _step(images, whole=False)
    nothing = replace(step, known=Knowledge())
    assert nothing._gradients(step.cut, images, torch.tensor([True, False]), 0) is None

"""Gradients of a step in front of a cut, by the derivative behind the whole network."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.cut.places import Cut, Place
from gradinversion.peeling.cut.step_again import feature_misfits, gradients_by_output
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.kinds import Rectifier
from torch import Tensor, nn

IMAGES, SIDE = 3, 6


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    front = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    back = [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * SIDE**2, 5)]
    return nn.Sequential(*front, *back).eval()


def _graph() -> Graph:
    graph = network_graph(_network(), (3, SIDE, SIDE), BatchNormMode.EVAL, IMAGES)
    assert isinstance(graph, Graph)
    return graph


def _images() -> Tensor:
    return torch.randn(IMAGES, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_gradients_are_those_of_the_loss() -> None:
    model, images, labels = _network().double(), _images(), torch.tensor([1, 4, 0])
    logits = model(images)
    F.cross_entropy(logits, labels).backward()
    arriving = (logits.softmax(dim=1) - F.one_hot(labels, 5)).detach() / IMAGES
    names = [name for name, _ in model.named_parameters()][:3]
    found = gradients_by_output(_graph(), names, images, arriving)
    assert list(found) == names
    for name in names:
        torch.testing.assert_close(found[name], model.get_parameter(name).grad, rtol=1e-5, atol=1e-7)


def test_a_parameter_that_the_output_does_not_read_has_no_gradient() -> None:
    graph = _graph()
    alone = replace(graph, tensors={**graph.tensors, "alone": torch.ones(2)})
    found = gradients_by_output(alone, ["alone", "0.weight"], _images(), torch.ones(IMAGES, 5, dtype=torch.float64))
    assert not bool(found["alone"].any())
    assert bool(found["0.weight"].any())


def test_misfits_are_each_images_own() -> None:
    graph, images = _graph(), _images()
    rectifier = next(node for node in graph.nodes if isinstance(node.kind, Rectifier))
    (before,) = rectifier.inputs
    nothing = Cut(graph, (_place(rectifier.name, before, torch.zeros(IMAGES, 8, SIDE, SIDE)),))
    values = nothing.forward(torch.float64, torch.device("cpu"))(images)[0].clamp_min(0)
    cut = replace(nothing, places=(_place(rectifier.name, before, values),))
    assert float(feature_misfits(cut, images).max()) < 1e-12
    other = images.clone()
    other[1] += 0.1
    misfits = feature_misfits(cut, other)
    assert float(misfits[1]) > 1e-3
    assert float(misfits[[0, 2]].max()) < 1e-12


def _place(name: str, before: str, values: Tensor) -> Place:
    error = torch.full((IMAGES,), 1e-6, dtype=torch.float64)
    return Place(name, before, values, values > 0, torch.full_like(values, 1e-6), error)

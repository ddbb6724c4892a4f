"""Means over windows taken before a 1x1 convolution instead of behind it."""

from __future__ import annotations

import pytest
import torch
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.kinds import AveragePool, Convolution
from torch import nn


def _graph(*layers: nn.Module, side: int = 8) -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), *layers, nn.Flatten(), nn.LazyLinear(4)).eval()
    model(torch.zeros(2, 3, side, side))
    graph = network_graph(model, (3, side, side), BatchNormMode.EVAL, 2)
    assert isinstance(graph, Graph)
    return model, graph


def _run(graph: Graph, images: torch.Tensor) -> torch.Tensor:
    values = {graph.images: images}
    for node in graph.nodes:
        entering = [values[name] for name in node.inputs]
        values[node.name] = node.kind.forward(entering, graph.tensors_of(node, images))
    return values[graph.output]


@pytest.mark.parametrize("bias", [False, True])
def test_the_mean_comes_first_and_the_numbers_stay(bias: bool) -> None:
    model, graph = _graph(nn.Conv2d(8, 16, 1, bias=bias), nn.AvgPool2d(2), nn.ReLU())
    convolution = graph.by_name["2"]
    assert isinstance(convolution.kind, Convolution)
    assert isinstance(graph.by_name[convolution.inputs[0]].kind, AveragePool)
    assert graph.shape(convolution.inputs[0]) == (8, 4, 4)
    assert graph.shape("2") == (16, 4, 4)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(_run(graph, images), model(images))


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(8, 16, 3, 1, 1), nn.AvgPool2d(2)),
        (nn.Conv2d(8, 16, 1), nn.AvgPool2d(3, 2, 1)),
        (nn.Conv2d(8, 16, 1), nn.ReLU(), nn.AvgPool2d(2)),
        (nn.Conv2d(8, 16, 1), nn.MaxPool2d(2)),
    ],
)
def test_where_the_order_matters_it_stays(layers: tuple[nn.Module, ...]) -> None:
    model, graph = _graph(*layers)
    assert "averaged for" not in "".join(graph.by_name)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(_run(graph, images), model(images))


def test_one_behind_the_other() -> None:
    layers = (nn.Conv2d(8, 16, 1), nn.AvgPool2d(2), nn.Conv2d(16, 16, 1), nn.AvgPool2d(2))
    model, graph = _graph(*layers)
    assert graph.shape("2") == (16, 4, 4)
    assert graph.shape("4") == (16, 2, 2)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(_run(graph, images), model(images))

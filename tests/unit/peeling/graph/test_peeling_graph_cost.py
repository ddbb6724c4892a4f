from __future__ import annotations

import torch
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.graph.cost import operations
from torch import nn


def test_multiplications_and_additions_are_counted_up_to_a_value() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    graph = network_graph(model, (3, 6, 6), BatchNormMode.EVAL, 2)
    assert isinstance(graph, Graph)
    by_convolution = 2 * 3 * 9 * 4 * 36
    assert operations(graph, ["0"]) == by_convolution
    assert operations(graph, [graph.output]) == by_convolution + 2 * 4 * 36 * 5
    assert operations(graph, [graph.images]) == 0

from __future__ import annotations

import torch
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.cut import Cut, Place
from gradinversion.peeling.cut.misfits import misfits_of
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.kinds import Rectifier
from torch import nn


def test_what_is_left_is_relative_to_the_features_and_to_the_image_that_is_meant() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    graph = network_graph(model, (3, 8, 8), BatchNormMode.EVAL, 2)
    assert isinstance(graph, Graph)
    rectifier = next(node for node in graph.nodes if isinstance(node.kind, Rectifier))
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        entering = model[0](images).double()
    error = torch.full((2,), 1e-7, dtype=torch.float64)
    spread = torch.full_like(entering, 1e-7)
    place = Place(rectifier.name, rectifier.inputs[0], entering.clamp_min(0), entering > 0, spread, error)
    misfits = misfits_of(Cut(graph, (place,)), torch.device("cpu"))
    with torch.no_grad():
        assert float(misfits(images).max()) < 1e-10
        # Candidates for the second image, then the first.
        assert float(misfits(images[[1, 0, 1]], torch.tensor([1, 0, 1])).max()) < 1e-10
        wrong = misfits(images[[1]], torch.tensor([0]))
        off = (entering[1].clamp_min(0) - place.values[0])[entering[0] <= 0].square().sum()
        off += (entering[1] - place.values[0])[entering[0] > 0].square().sum()
        torch.testing.assert_close(wrong[0].double(), off / place.values[0].square().sum(), atol=1e-5, rtol=1e-4)

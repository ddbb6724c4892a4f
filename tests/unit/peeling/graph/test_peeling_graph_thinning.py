from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.kinds import Convolution, Subsample
from gradinversion.peeling.rules import derive, misfits
from gradinversion.peeling.rules.rule import Setting
from torch import Tensor, nn


class Block(nn.Module):
    """A bottleneck; where it halves the places its first convolution does."""

    def __init__(self, entering: int, inner: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, inner, 1, stride)
        self.conv2 = nn.Conv2d(inner, inner, 3, 1, 1)
        self.conv3 = nn.Conv2d(inner, leaving, 1)
        self.down = nn.Conv2d(entering, leaving, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, value: Tensor) -> Tensor:
        inner = self.conv3(F.relu(self.conv2(F.relu(self.conv1(value)))))
        return F.relu(inner + self.down(value))


def network(side: int) -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU()]
    blocks = [Block(64, 48, 64, 1), Block(64, 64, 128, 2)]
    model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)).eval()
    graph = network_graph(model, (3, side, side), BatchNormMode.EVAL, 2)
    assert isinstance(graph, Graph)
    return model, graph


def run(graph: Graph, images: Tensor) -> dict[str, Tensor]:
    values = {graph.images: images}
    for node in graph.nodes:
        values[node.name] = node.kind.forward([values[one] for one in node.inputs], graph.tensors_of(node, images))
        assert tuple(values[node.name].shape[1:]) == node.shape
    return values


@pytest.mark.parametrize("side", [16, 14])
def test_places_that_nothing_reads_are_left_out(side: int) -> None:
    model, graph = network(side)
    images = torch.randn(2, 3, side, side)
    torch.testing.assert_close(run(graph, images)[graph.output], model(images))
    kinds = {node.name: node.kind for node in graph.nodes}
    strides = {name: kind.stride[0] for name, kind in kinds.items() if isinstance(kind, Convolution)}
    # The block in front is read at every second place alone, but its own first convolution needs all of its input.
    assert strides == {
        "0": 2,
        "2.conv1": 1,
        "2.conv2": 2,
        "2.conv3": 1,
        "3.conv1": 1,
        "3.down": 1,
        "3.conv2": 1,
        "3.conv3": 1,
    }
    half = -(-(side // 2) // 2)
    assert graph.shape("2.conv3") == (64, half, half)
    assert [node.inputs for node in graph.nodes if isinstance(node.kind, Subsample)] == [("relu",)]


def test_a_network_whose_blocks_begin_with_the_stride_is_peeled() -> None:
    model, graph = network(16)
    generator = torch.Generator().manual_seed(1)
    images = F.interpolate(torch.randn(2, 3, 4, 4, generator=generator), 16, mode="bicubic")
    parameters = dict(model.named_parameters())
    loss = F.cross_entropy(model(images), torch.tensor([1, 4]))
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    found = derive(graph, gradients, 2, 3e-2)
    true = run(graph, images.double())
    for name in ("2.conv3", "2.conv2"):
        value = graph.by_name[name].inputs[0]
        known = found.knowledge.complete(value)
        assert known is not None, name
        apart = torch.cdist(known.values.flatten(1), true[value].flatten(1)) / true[value].flatten(1).norm(dim=1)
        assert float(apart.amin(dim=1).max()) < 1e-4
        assert sorted(apart.argmin(dim=1).tolist()) == [0, 1]
    left = misfits(Setting(graph, gradients, 2, 3e-2), found.knowledge)
    assert max(left[name] for name in ("2.conv2", "2.conv3", "3.conv1", "3.down")) < 1e-5


def test_a_network_without_such_places_stays_as_it_is() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    graph = network_graph(model, (3, 16, 16), BatchNormMode.EVAL, 2)
    assert isinstance(graph, Graph)
    assert not any(isinstance(node.kind, Subsample) for node in graph.nodes)
    assert graph.shape("0") == (8, 8, 8)

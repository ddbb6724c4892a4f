from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.graph import Graph, NoGraph, network_graph
from gradinversion.peeling.kinds import (
    BatchNorm,
    BatchStatisticsNorm,
    Concatenation,
    Convolution,
    CopiedPadding,
    GlobalMean,
    Linear,
    Opaque,
    Rectifier,
    Reshape,
    Sum,
)
from torch import Tensor, nn

SHAPE = (3, 12, 12)


class Network(nn.Module):
    """Two convolutions, a batch norm and a linear layer; what happens between them is the test's."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], **convolution: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, **{"padding": 1, **convolution})  # type: ignore[arg-type]
        self.fc = nn.Linear(4, 5)
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self, images)


def graph_of(model: nn.Module, mode: BatchNormMode = BatchNormMode.EVAL) -> Graph:
    found = network_graph(model.eval(), SHAPE, mode, 3)
    assert isinstance(found, Graph), found
    return found


def kinds(graph: Graph) -> Counter[str]:
    return Counter(type(node.kind).__name__ for node in graph.nodes)


def residual(model: Network, images: Tensor) -> Tensor:
    stem = F.relu(model.norm(model.stem(images)))
    return model.fc(torch.flatten(F.relu(model.conv(stem) + stem).mean((2, 3)), 1))


def test_functions_and_operators_are_read_like_modules() -> None:
    graph = graph_of(Network(residual))
    assert kinds(graph) == {
        "Identity": 1,  # the model is given a copy of the images
        "Convolution": 2,
        "BatchNorm": 1,
        "Rectifier": 2,
        "Sum": 1,
        "GlobalMean": 1,
        "Reshape": 1,
        "Linear": 1,
    }
    conv = graph.by_name["conv"]
    assert conv.kind == Convolution((3, 3), (1, 1), (1, 1), (1, 1), 1)
    assert conv.tensors == {"weight": "conv.weight", "bias": "conv.bias"}
    assert conv.shape == (4, 12, 12)
    stem = graph.by_name[conv.inputs[0]]
    assert stem.kind == Rectifier(math.inf)
    assert {type(node.kind) for node in graph.readers(stem.name)} == {Convolution, Sum}
    assert graph.trained == {name for name, _ in Network(residual).named_parameters()}
    assert type(graph.by_name[graph.output].kind) is Linear


def test_the_graph_is_the_model() -> None:
    model = Network(residual).eval()
    graph, images = graph_of(model), torch.randn(3, *SHAPE)
    values = {graph.images: images}
    for node in graph.nodes:
        tensors = graph.tensors_of(node, images)
        values[node.name] = node.kind.forward([values[name] for name in node.inputs], tensors)
    torch.testing.assert_close(values[graph.output], model(images))


def in_place(model: Network, images: Tensor) -> Tensor:
    normalised = model.norm(model.stem(images))
    opened = F.relu_(normalised)
    both = model.conv(normalised)  # by now the output of the ReLU
    both += opened
    return model.fc(both.mean((2, 3)))


def test_what_was_written_in_place_is_read_as_it_then_was() -> None:
    graph = graph_of(Network(in_place))
    assert not list(graph.opaque())
    (opened,) = (node for node in graph.nodes if isinstance(node.kind, Rectifier))
    assert graph.by_name["conv"].inputs == (opened.name,)


def test_the_batchs_own_statistics_are_recorded() -> None:
    model = Network(residual)
    assert isinstance(graph_of(model).by_name["norm"].kind, BatchNorm)
    graph = graph_of(model, BatchNormMode.TRAIN_PRIVATE)
    assert isinstance(graph.by_name["norm"].kind, BatchStatisticsNorm)
    assert not list(graph.opaque())


def side_by_side(model: Network, images: Tensor) -> Tensor:
    stem = F.relu6(model.stem(images))
    both = torch.cat([stem, F.max_pool2d(model.conv(stem), 3, 1, 1)], dim=1)
    return model.fc(F.adaptive_avg_pool2d(F.avg_pool2d(both, 2), 1)[:, :4].flatten(1))


def test_a_slice_is_opaque_and_what_is_around_it_is_not() -> None:
    graph = graph_of(Network(side_by_side))
    opaque = list(graph.opaque())
    assert all("slice" in node.kind.why for node in opaque if isinstance(node.kind, Opaque))
    assert opaque
    assert kinds(graph)["Concatenation"] == kinds(graph)["MaxPool"] == kinds(graph)["AdaptiveAveragePool"] == 1
    assert [node.kind for node in graph.nodes if isinstance(node.kind, Rectifier)] == [Rectifier(6.0)]


def twice(model: Network, images: Tensor) -> Tensor:
    return model.fc(model.conv(F.relu(model.conv(model.stem(images)))).mean((2, 3)))


def test_a_module_that_runs_twice_has_no_gradient_of_its_own() -> None:
    graph = graph_of(Network(twice))
    assert kinds(graph)["Convolution"] == 3
    assert not list(graph.opaque())
    assert {"conv.weight", "conv.bias"} & graph.trained == set()
    assert "stem.weight" in graph.trained


def test_tied_weights_have_no_gradient_of_their_own() -> None:
    model = Network(lambda net, images: net.fc(net.second(net.stem(images).mean((2, 3)))))
    model.second = nn.Linear(4, 4)
    model.third = nn.Linear(4, 4)
    model.third.weight = model.second.weight
    model.body = lambda net, images: net.fc(net.third(F.relu(net.second(net.stem(images).mean((2, 3))))))
    graph = graph_of(model)
    assert graph.by_name["second"].tensors["weight"] == "second.weight"
    assert "second.weight" not in graph.trained
    assert {"second.bias", "third.bias", "fc.weight"} <= graph.trained


def test_frozen_parameters_have_no_gradient() -> None:
    model = Network(residual)
    model.conv.weight.requires_grad_(False)
    assert "conv.weight" not in graph_of(model).trained


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_the_grids_own_numbers_is_an_operation_of_its_own(mode: str) -> None:
    graph = graph_of(Network(residual, padding_mode=mode))
    assert not list(graph.opaque())
    (padding,) = [node for node in graph.nodes if isinstance(node.kind, CopiedPadding)]
    assert padding.kind == CopiedPadding((1, 1, 1, 1), mode)
    assert isinstance(graph.by_name["conv"].kind, Convolution)


def test_a_hook_that_changes_the_gradient_is_found_out() -> None:
    model = Network(residual)

    def double(module: nn.Module, by_input: Any, by_output: Any) -> Any:
        return (2 * by_input[0],)

    model.conv.register_full_backward_hook(double)
    graph = graph_of(model)
    # In front of the hook derivatives are others than the operations make them; behind it they are not.
    assert {node.name for node in graph.opaque()} >= {"stem", "norm"}
    assert "fc" not in {node.name for node in graph.opaque()}


def decides(model: Network, images: Tensor) -> Tensor:
    stem = model.stem(images)
    return model.fc((stem if stem.sum() > 0 else -stem).mean((2, 3)))


def test_control_flow_by_data_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    found = network_graph(Network(decides).eval(), SHAPE, BatchNormMode.EVAL, 3)
    assert isinstance(found, NoGraph)
    assert "cannot be written as a graph" in found.why
    assert "\n" not in found.why
    assert capsys.readouterr() == ("", "")


def test_a_derivative_that_stops_is_found_out() -> None:
    def stops(model: Network, images: Tensor) -> Tensor:
        stem = model.norm(model.stem(images))
        return model.fc((stem.detach() + model.conv(stem)).mean((2, 3)))

    graph = graph_of(Network(stops))
    assert any(node.name.startswith("detach") for node in graph.opaque())


def test_a_model_for_one_size_of_batch_is_asked_with_it() -> None:
    def fixed(model: Network, images: Tensor) -> Tensor:
        return model.fc(model.stem(images).reshape(3, 4, -1).mean(2))

    found = network_graph(Network(fixed).eval(), SHAPE, BatchNormMode.EVAL, 3)
    assert isinstance(found, Graph)
    assert [type(node.kind) for node in found.nodes[2:3]] == [Reshape]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", {"Convolution": 20, "BatchNorm": 20, "Sum": 8, "MaxPool": 1, "Rectifier": 17}),
        ("mobilenet_v2", {"Convolution": 52, "BatchNorm": 52, "Sum": 10, "Rectifier": 35}),
    ],
)
def test_published_networks_have_nothing_opaque(name: str, expected: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    graph = network_graph(model, (3, 32, 32), BatchNormMode.EVAL, 2)
    assert isinstance(graph, Graph)
    assert not list(graph.opaque())
    assert {kind: count for kind, count in kinds(graph).items() if kind in expected} == expected
    assert graph.trained == {parameter for parameter, _ in model.named_parameters()}


def test_gated_channels_are_opaque_between_known_kinds() -> None:
    def gated(model: Network, images: Tensor) -> Tensor:
        stem = model.stem(images)
        return model.fc((stem * torch.sigmoid(stem.mean((2, 3), keepdim=True))).mean((2, 3)))

    graph = graph_of(Network(gated))
    assert {node.kind.why for node in graph.opaque() if isinstance(node.kind, Opaque)} == {
        "aten.sigmoid.default",
        "aten.mul.Tensor",
    }
    assert sum(isinstance(node.kind, GlobalMean) for node in graph.nodes) == 2


def test_concatenation_along_places_is_opaque() -> None:
    def stacked(model: Network, images: Tensor) -> Tensor:
        stem = model.stem(images)
        return model.fc(torch.cat([stem, stem], dim=2).mean((2, 3)))

    graph = graph_of(Network(stacked))
    assert not any(isinstance(node.kind, Concatenation) for node in graph.nodes)
    assert kinds(graph)["Opaque"] == 1

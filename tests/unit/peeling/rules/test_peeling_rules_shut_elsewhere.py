"""Dense networks: values that many batch norms and rectifiers read, side by side with others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gradinversion.peeling.kinds import Rectifier
from gradinversion.peeling.recording import record_derivation
from gradinversion.peeling.wording import ended, reached
from torch import Tensor, nn

Cases = Callable[..., Any]


class _Layer(nn.Module):
    """Batch norm and rectifier on all values so far, and what two convolutions make of them."""

    def __init__(self, entering: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(entering), nn.Conv2d(entering, 64, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(64), nn.Conv2d(64, growth, 3, 1, 1, bias=False)

    def forward(self, values: list[Tensor]) -> Tensor:
        inner = self.conv1(self.norm1(torch.cat(values, 1)).relu())
        return self.conv2(self.norm2(inner).relu())


class _Dense(nn.Module):
    """Places 4 x 4 in front of a transition, 2 x 2 in a block behind it."""

    def __init__(self, layers: int = 3, growth: int = 32, thresholds: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm0 = nn.Conv2d(3, 48, 3, 2, 1), nn.BatchNorm2d(48)
        self.transition, self.pool = nn.Conv2d(48, 32, 1, bias=False), nn.AvgPool2d(2)
        self.layers = nn.ModuleList(_Layer(32 + one * growth, growth) for one in range(layers))
        self.norm, self.fc = nn.BatchNorm2d(32 + layers * growth), nn.Linear(32 + layers * growth, 10)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.7, 1.3)
                nn.init.normal_(module.bias, 0, thresholds)

    def forward(self, images: Tensor) -> Tensor:
        values = [self.pool(self.transition(self.norm0(self.stem(images)).relu()))]
        for layer in self.layers:
            values.append(layer(values))
        return self.fc(self.norm(torch.cat(values, 1)).relu().mean((2, 3)))


def test_units_that_one_layer_shuts_are_shut_in_the_others(residual_case: Cases) -> None:
    case = residual_case(2, model=_Dense().eval())
    found = case.derived().knowledge
    graph = case.graph
    rectifiers = [node.name for node in graph.nodes if isinstance(node.kind, Rectifier) and node.shape[1:] == (2, 2)]
    assert len(rectifiers) == 7
    for name in rectifiers:
        known = found.complete(name)
        assert known is not None, name
        errors = case.errors(name, known.values)
        assert max(errors) < 1e-4, name
        assert max(errors) < 10 * float(known.error.max()), name
    assert found.complete(graph.output) is not None


def test_what_enters_a_transition_is_known_as_its_mean_over_windows(residual_case: Cases) -> None:
    case = residual_case(2, model=_Dense().eval())
    derivation = case.derived()
    found = derivation.knowledge
    averaged = case.graph.by_name["transition"].inputs[0]
    assert case.graph.shape(averaged) == (48, 2, 2)
    known = found.complete(averaged)
    assert known is not None
    assert max(case.errors(averaged, known.values)) < 1e-4
    record = record_derivation(derivation, 2, 3e-2)
    assert "the mean over windows of the input of transition" in reached(record)
    assert ended(record)


def test_a_unit_that_another_threshold_leaves_open_is_not_taken_for_shut(residual_case: Cases) -> None:
    case = residual_case(2, model=_Dense(thresholds=0.5).eval())
    found = case.derived()
    for name, known in found.knowledge.activations.items():
        if known.complete and bool(known.values.any()):
            errors = case.errors(name, known.values)
            assert max(errors) < 10 * max(float(known.error.max()), 2e-7), name
    # Some of the first value's units are shut in the first layer and open in a later one: nothing tells these.
    late = case.graph.by_name["layers.2.conv1"].inputs[0]
    assert found.knowledge.complete(late) is None

"""Networks with values side by side, and with pooling between their convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Cases = Callable[..., Any]


def _unit(entering: int, leaving: int, side: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(leaving)
    nn.init.uniform_(norm.weight, 0.7, 1.3)
    nn.init.normal_(norm.bias, 0, 0.1)
    return nn.Sequential(nn.Conv2d(entering, leaving, side, 1, side // 2, bias=False), norm, nn.ReLU())


class _Branches(nn.Module):
    """A small inception block."""

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.one = _unit(entering, leaving, 1)
        self.two = nn.Sequential(_unit(entering, leaving, 1), _unit(leaving, leaving, 3))

    def forward(self, value: Tensor) -> Tensor:
        return torch.cat([self.one(value), self.two(value)], 1)


def _head(wide: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 10)]


def test_what_lies_side_by_side_is_taken_apart(residual_case: Cases) -> None:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU())
    model = nn.Sequential(stem, _Branches(24, 48), _Branches(96, 48), *_head(96)).eval()
    case = residual_case(2, model=model)
    found = case.derived()
    joined = case.graph.by_name["2.one.0"].inputs[0]
    for value in case.graph.by_name[joined].inputs:
        known = found.knowledge.complete(value)
        assert known is not None, value
        assert max(case.errors(value, known.values)) < 1e-4
    # And from there in front of the first block.
    before = case.graph.by_name["1.one.0"].inputs[0]
    known = found.knowledge.complete(before)
    assert known is not None
    assert max(case.errors(before, known.values)) < 1e-4


def test_in_front_of_max_pooling_another_foothold_is_taken(residual_case: Cases) -> None:
    torch.manual_seed(1)
    units = [_unit(3, 160, 3), _unit(160, 160, 3), nn.MaxPool2d(2), _unit(160, 64, 3), _unit(64, 64, 3)]
    case = residual_case(2, model=nn.Sequential(*units, *_head(64)).eval())
    found = case.derived()
    assert found.steps[0].value == case.graph.by_name["1.0"].inputs[0]
    first = case.graph.by_name["0.0"].inputs[0]
    known = found.knowledge.complete(first)
    assert known is not None
    assert max(case.errors(first, known.values)) < 1e-3
    # All that lies behind follows by running the network.
    logits = found.knowledge.complete(case.graph.output)
    assert logits is not None
    assert max(case.errors(case.graph.output, logits.values)) < 1e-3

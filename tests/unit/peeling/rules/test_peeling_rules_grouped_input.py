"""The input of a convolution whose channels are in groups, solved group by group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.peeling.refusals import Why
from gradinversion.peeling.rules.effort import Effort
from gradinversion.peeling.rules.grouped_input import grouped_input
from gradinversion.peeling.rules.rule import Setting
from torch import Tensor, nn

Cases = Callable[..., Any]


class _Block(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)

    def forward(self, value: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(value)))))
        return F.relu(inner + value)


def _network(groups: int, stride: int, entering: int = 32) -> nn.Sequential:
    """Places 4 x 4 in front of the convolution in groups."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(64)
    nn.init.uniform_(norm.weight, 0.7, 1.3)
    nn.init.normal_(norm.bias, 0, 0.1)
    grouped = [nn.Conv2d(entering, 64, 3, stride, 1, groups=groups, bias=False), norm, nn.ReLU()]
    halved = [] if stride == 2 else [nn.Conv2d(64, 64, 3, 2, 1, bias=False), nn.ReLU()]
    head = [_Block(64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(nn.Conv2d(3, entering, 3, 2, 1), nn.ReLU(), *grouped, *halved, *head).eval()


@pytest.mark.parametrize(("count", "groups", "stride"), [(2, 4, 2), (1, 8, 2), (2, 8, 1), (3, 2, 2)])
def test_the_input_of_a_convolution_in_groups_is_solved_for(
    residual_case: Cases, count: int, groups: int, stride: int
) -> None:
    case = residual_case(count, model=_network(groups, stride))
    found = case.derived()
    value = case.graph.by_name["2"].inputs[0]
    known = found.knowledge.complete(value)
    assert known is not None
    errors = case.errors(value, known.values)
    assert max(errors) < 1e-3
    # What is stated is at least a tenth of what is true.
    assert max(errors) < 10 * float(known.error.max())
    (step,) = [step for step in found.steps if step.rule == "convolution input in groups"]
    assert step.checks["equations"] == 64 // groups * 9


def test_groups_with_too_few_equations_are_said_to_have_them(residual_case: Cases) -> None:
    case = residual_case(3, model=_network(16, 1))
    value = case.graph.by_name["2"].inputs[0]
    (refused,) = [one for one in case.derived().refused if one.value == value]
    assert refused.why is Why.FEW_EQUATIONS
    assert refused.places == 48
    assert refused.equations is not None
    assert refused.equations == int(36 / 1.02)


def test_nothing_is_said_of_depthwise_convolutions(residual_case: Cases) -> None:
    case = residual_case(2, model=_network(64, 1, entering=64))
    value = case.graph.by_name["2"].inputs[0]
    found = case.derived()
    assert found.knowledge.complete(value) is None
    assert all(one.value != value for one in found.refused)


def test_an_even_place_needs_as_many_outputs_as_there_are(residual_case: Cases) -> None:
    # Behind a stride of two, places of even row and column are seen by one entry of the kernel: 8 equations of a
    # group for 12 unknowns, where 72 for all 48 would be enough.
    case = residual_case(3, model=_network(8, 2))
    value = case.graph.by_name["2"].inputs[0]
    found = case.derived()
    assert found.knowledge.complete(value) is None
    (refused,) = [one for one in found.refused if one.value == value]
    assert refused.why is Why.OPEN


class _Both(nn.Module):
    """Two convolutions in groups that read one value."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(32, 64, 3, 2, 1, groups=16)
        self.two = nn.Conv2d(32, 64, 3, 2, 1, groups=8)

    def forward(self, value: Tensor) -> Tensor:
        return F.relu(self.one(value) + self.two(value))


def test_what_one_convolution_refused_is_not_forgotten_for_another_of_the_same_value(residual_case: Cases) -> None:
    torch.manual_seed(0)
    head = [_Block(64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    case = residual_case(3, model=nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), _Both(), *head).eval())
    found = case.derived().knowledge
    tried: list[str] = []

    class Counted(Effort):
        def once(self, rule: str, value: str, given: Any, attempt: Any) -> Any:
            def counted() -> Any:
                tried.append(rule)
                return attempt()

            return super().once(rule, value, given, counted)

    setting = Setting(case.graph, case.gradients, 3, 3e-2, Counted())
    refused = [list(grouped_input(setting, found)) for _ in range(2)]
    assert tried == [f"convolution input in groups of {name}" for name in ("2.one", "2.two")]
    assert refused[0] == refused[1]
    assert len(refused[0]) == 2

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.graph import Graph, network_graph
from gradinversion.peeling.local_steps import LocalSteps
from gradinversion.peeling.refusals import Refused, Why
from gradinversion.peeling.rules.knowledge import Knowledge
from gradinversion.peeling.rules.rule import Setting
from gradinversion.peeling.rules.tap_foothold import tap_foothold
from gradinversion.peeling.rules.visit_foothold import visit_foothold
from torch import Tensor, nn

Cases = Callable[..., Any]


class Grouped(nn.Module):
    """A bottleneck as ResNeXt has them."""

    def __init__(self, entering: int, inner: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, 1, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, entering, 1)

    def forward(self, value: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(value)))
        return F.relu(self.conv3(F.relu(self.bn2(self.conv2(inner)))) + value)


def _grouped_network(groups: int, inner: int = 128) -> nn.Sequential:
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    model = nn.Sequential(*stem, Grouped(64, inner, groups), *head)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("running_var").uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


@pytest.mark.parametrize(("count", "groups", "inner"), [(1, 8, 128), (2, 4, 128), (3, 8, 512)])
def test_groups_of_channels_are_taken_apart_and_linked(
    residual_case: Cases, count: int, groups: int, inner: int
) -> None:
    case = residual_case(count, model=_grouped_network(groups, inner))
    found = case.derived()
    assert found.steps, found.refused
    assert found.steps[0].rule == "taps"
    assert found.steps[0].value == case.graph.by_name["4.conv2"].inputs[0]
    assert found.steps[0].checks["equations"] == inner // groups
    assert len(found.steps) > 2
    for step in found.steps:
        true = case.errors(step.value, found.knowledge.activations[step.value].values)
        assert max(true) < 1e-4
        for stated, error in zip(step.error, true, strict=True):
            assert stated > error / 10, step.value


def test_groups_have_as_many_places_as_one_has_channels(residual_case: Cases) -> None:
    case = residual_case(3, model=_grouped_network(16))
    found = case.derived()
    assert found.steps == ()
    (end,) = [one for one in found.refused if one.rule == "taps"]
    assert (end.why, end.places, end.equations) == (Why.FEW_EQUATIONS, 12, 8)


def test_groups_that_nothing_links_are_said_to_bar_the_taps(residual_case: Cases) -> None:
    layers = [nn.Conv2d(3, 64, 4, 4), nn.ReLU(), nn.Conv2d(64, 64, 1, groups=2), nn.ReLU()]
    layers += [nn.Conv2d(64, 64, 3, 1, 1, groups=2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
    found = residual_case(2, model=model).derived()
    assert found.steps == ()
    assert [(one.value, one.why) for one in found.refused] == [("relu_1", Why.GROUPS)]
    assert "groups" in found.refused[0].words


def test_taps_are_found_behind_a_dropout_that_is_off(residual_case: Cases, residual_network: Cases) -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = residual_network()
            self.drop = nn.Dropout(0.3)

        def forward(self, value: Tensor) -> Tensor:
            block = self.body[4]
            value = self.body[:4](value)
            inner = self.drop(F.relu(block.bn1(block.conv1(value))))
            return self.body[5:](F.relu(block.bn2(block.conv2(inner)) + value))

    case = residual_case(2, model=Dropped().eval())
    found = case.derived()
    assert found.steps[0].rule == "taps"
    assert max(max(step.error) for step in found.steps) < 1e-4
    assert found.knowledge.complete(case.graph.by_name["body.0"].inputs[0]) is not None


def test_gradients_that_begin_at_zero_are_said_to_bar_the_taps(residual_case: Cases, residual_network: Cases) -> None:
    model = residual_network()
    for block in (model[2], model[3], model[4]):
        torch.nn.init.zeros_(block.bn2.weight)
    case = residual_case(2, model=model)
    found = case.derived()
    assert found.steps == ()
    assert {one.why for one in found.refused} == {Why.FLAT}
    assert found.refused[0].value == case.graph.by_name["4.conv2"].inputs[0]


def _many_channels(pixels: int) -> nn.Sequential:
    layers = [nn.Conv2d(3, 128, 4, 4), nn.ReLU(), nn.Conv2d(128, 128, 3, 1, 1, bias=False), nn.BatchNorm2d(128)]
    layers += [
        nn.ReLU(),
        nn.Conv2d(128, 128, 3, 1, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128 * (pixels // 4) ** 2, 10),
    ]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("visits", [False, True])
@pytest.mark.parametrize(
    ("count", "pixels", "why", "equations"),
    [(80, 4, Why.LARGE, 64), (80, 8, Why.FEW_EQUATIONS, 128), (40, 8, Why.FEW_EQUATIONS, 128)],
)
def test_more_images_than_are_told_apart_are_no_lack_of_equations(
    visits: bool, count: int, pixels: int, why: Why, equations: int
) -> None:
    model = _many_channels(pixels)
    graph = network_graph(model, (3, pixels, pixels), BatchNormMode.EVAL, count)
    assert isinstance(graph, Graph)
    gradients = {name: torch.ones_like(one) for name, one in model.named_parameters()}
    steps = LocalSteps((8,) * (count // 8), 0.02) if visits else None
    rule = visit_foothold if visits else tap_foothold
    (refused,) = rule(Setting(graph, gradients, count, 0.03, steps=steps), Knowledge())
    assert isinstance(refused, Refused)
    places = (pixels // 4) ** 2
    assert (refused.why, refused.places, refused.equations) == (why, count * places, equations)
    assert refused.most_images(count) == equations // places
    # Smaller images would do where it is not their number.
    assert bool(refused.largest_side(pixels // 4, pixels)) == (count <= 64)


def test_where_the_convolution_in_front_is_crowded_it_is_named() -> None:
    """Its numbers are those that are said."""
    model = _many_channels(8)
    model[0], model[2] = nn.Conv2d(3, 32, 4, 4), nn.Conv2d(32, 128, 3, 1, 1, bias=False)
    graph = network_graph(model, (3, 8, 8), BatchNormMode.EVAL, 16)
    assert isinstance(graph, Graph)
    gradients = {name: torch.ones_like(one) for name, one in model.named_parameters()}
    setting = Setting(graph, gradients, 16, 0.03, steps=LocalSteps((8, 8), 0.02))
    (refused,) = visit_foothold(setting, Knowledge())
    assert isinstance(refused, Refused)
    assert refused.value == graph.by_name["2"].inputs[0]
    assert (refused.why, refused.places, refused.equations) == (Why.FEW_EQUATIONS, 64, 32)

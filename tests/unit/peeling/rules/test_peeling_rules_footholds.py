from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gradinversion.peeling.refusals import Why
from torch import nn

Cases = Callable[..., Any]


def test_channels_in_groups_are_said_to_bar_the_taps(residual_case: Cases) -> None:
    layers = [nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1, groups=4), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
    found = residual_case(2, model=model).derived()
    assert [(one.value, one.why) for one in found.refused] == [("relu", Why.GROUPS)]
    assert "groups" in found.refused[0].words


def test_gradients_that_begin_at_zero_are_said_to_bar_the_taps(residual_case: Cases, residual_network: Cases) -> None:
    model = residual_network()
    for block in (model[2], model[3], model[4]):
        torch.nn.init.zeros_(block.bn2.weight)
    case = residual_case(2, model=model)
    found = case.derived()
    assert found.steps == ()
    assert {one.why for one in found.refused} == {Why.FLAT}
    assert found.refused[0].value == case.graph.by_name["4.conv2"].inputs[0]

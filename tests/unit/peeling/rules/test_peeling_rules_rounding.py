"""What a gradient that was read off one step of the weights is off by is stated, entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.rules import derive
from gradinversion.peeling.rules.rule import Setting

Cases = Callable[..., Any]


@pytest.fixture
def case(residual_case: Cases, residual_network: Cases) -> Any:
    return residual_case(2, 0, residual_network(0, normed_skips=True), BatchNormMode.TRAIN_PRIVATE)


def stepped(case: Any, rate: float) -> dict[str, torch.Tensor]:
    """The gradient as it stands in weights that moved by it."""
    before = {name: parameter.detach() for name, parameter in case.model.named_parameters()}
    return {name: (before[name] - (before[name] - rate * one)) / rate for name, one in case.gradients.items()}


@pytest.mark.parametrize("rate", [0.1, 0.003])
@pytest.mark.parametrize("role", ["weight", "bias"])
def test_the_deviation_is_that_of_the_entries(case: Any, rate: float, role: str) -> None:
    gradients = stepped(case, rate)
    setting = Setting(case.graph, gradients, 2, 3e-2, step_rate=rate)
    deviation = setting.deviation("3.bn2", role)
    assert deviation is not None
    off = (gradients[f"3.bn2.{role}"] - case.gradients[f"3.bn2.{role}"]).double()
    assert 0.5 < float((off / deviation).square().mean().sqrt()) < 2
    assert Setting(case.graph, gradients, 2, 3e-2).deviation("3.bn2", role) is None


@pytest.mark.parametrize("rate", [0.1, 0.01, 0.003])
def test_it_is_in_what_is_stated(case: Any, rate: float) -> None:
    found = derive(case.graph, stepped(case, rate), 2, 3e-2, operations=1e11, step_rate=rate)
    exact = derive(case.graph, case.gradients, 2, 3e-2, operations=1e11)
    # The images may stand in another order.
    for name in ("4.bn2", "3.bn2"):
        ours, true = (one.knowledge.arriving[name] for one in (found, exact))
        apart = torch.cdist(ours.values.flatten(1), true.values.flatten(1)) / true.values.flatten(1).norm(dim=1)
        off, stated = float(apart.amin(dim=1).max()), float(ours.error.max())
        assert off < 10 * stated
        assert off > stated / 30

"""The input of a block that its own convolutions' gradients are too small for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradinversion.peeling.refusals import Why
from torch import nn

Cases = Callable[..., Any]


@pytest.fixture(scope="module")
def narrow(residual_network: Callable[..., nn.Sequential]) -> Callable[..., nn.Sequential]:
    """A network with a narrow block of many places in front: its inner value has more places than equations."""
    from .conftest import Block

    def make(seed: int, channels: int = 16, pooled: bool = False) -> nn.Sequential:
        torch.manual_seed(seed)
        stem: list[nn.Module] = [nn.Conv2d(3, channels, 3, 1, 1), nn.ReLU()]
        if pooled:
            stem.append(nn.MaxPool2d(3, 1, 1))
        model = nn.Sequential(*stem, Block(channels, channels, 1), *residual_network(seed, stem=channels, wide=80)[2:])
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.7, 1.3)
                nn.init.normal_(module.bias, 0, 0.1)
        return model.eval()

    return make


@pytest.mark.parametrize(("seed", "pooled"), [(0, False), (2, True)])
def test_the_input_of_a_block_with_too_few_equations_is_exact(
    residual_case: Cases, narrow: Callable[..., nn.Sequential], seed: int, pooled: bool
) -> None:
    case = residual_case(4, seed, narrow(seed, pooled=pooled))
    derivation = case.derived()
    steps = {step.rule: step for step in derivation.steps}
    assert "segment input" in steps, [one.words for one in derivation.refused]
    step = steps["segment input"]
    true = case.errors(step.value, derivation.knowledge.activations[step.value].values)
    assert max(true) < 1e-4
    for stated, error in zip(step.error, true, strict=True):
        assert stated > error / 10


def test_gradients_that_are_off_are_not_explained(residual_case: Cases, narrow: Callable[..., nn.Sequential]) -> None:
    case = residual_case(3, 0, narrow(0))
    name = next(name for name in case.gradients if name.endswith("conv1.weight"))
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(case.gradients[name].shape, generator=random)
    case.gradients[name] += 0.3 * case.gradients[name].square().mean().sqrt() * noise
    derivation = case.derived()
    assert "segment input" not in {step.rule for step in derivation.steps}
    assert any(one.rule == "segment input" and one.why is Why.INEXACT for one in derivation.refused)


def test_more_unknowns_than_equations_are_refused(residual_case: Cases, narrow: Callable[..., nn.Sequential]) -> None:
    case = residual_case(4, 0, narrow(0))
    for name in list(case.gradients):
        if name.startswith("2."):
            del case.gradients[name]
    derivation = case.derived()
    refused = [one for one in derivation.refused if one.rule == "segment input"]
    assert [one.why for one in refused] == [Why.FEW_EQUATIONS]
    assert refused[0].places == 256

"""The networks of the benchmark of what is unusual do what their cases say of them."""

from __future__ import annotations

import pytest
import torch
from gradinversion.benchmarks import unusual, unusual_models
from torch import nn

MODELS = sorted({case.model for case in unusual.CASES})


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(unusual_models, name)(num_classes=10)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_each_takes_the_images_of_the_benchmark(name: str) -> None:
    with torch.no_grad():
        assert made(name)(torch.randn(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("name", ["tied", "shared", "tied_last"])
def test_what_is_tied_is_one_parameter(name: str) -> None:
    model = made(name)
    names = {name for name, _ in model.named_parameters()}
    assert len(list(model.named_parameters(remove_duplicate=False))) > len(names)


@pytest.mark.parametrize(("name", "stage"), [("frozen_middle", "stage2"), ("frozen_last", "stage3")])
def test_a_frozen_stage_is_not_trained(name: str, stage: str) -> None:
    frozen = {name for name, parameter in made(name).named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all(name.startswith(stage) for name in frozen)


def test_no_two_cases_are_named_alike() -> None:
    assert len({case.name for case in unusual.CASES}) == len(unusual.CASES)

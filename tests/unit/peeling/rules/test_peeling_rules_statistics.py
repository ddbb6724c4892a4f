"""Batch norm on the batch's own statistics: the foothold, the fixed point downwards, and what is said of the errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.refusals import Why
from gradinversion.peeling.rules.batch_statistics import normalised
from gradinversion.peeling.rules.statistics_scale import scale_by_known, scale_by_shift
from torch import nn

Cases = Callable[..., Any]
TRAIN = BatchNormMode.TRAIN_PRIVATE


@pytest.mark.parametrize("seed", [0, 1])
def test_the_whole_network_follows_behind_batch_statistics(
    residual_case: Cases, residual_network: Cases, seed: int
) -> None:
    case = residual_case(2, seed, residual_network(seed, normed_skips=True), TRAIN)
    found = case.derived()
    by_rule = {step.rule for step in found.steps}
    assert {"taps", "input before batch statistics"} <= by_rule
    assert case.graph.by_name["3.conv1"].inputs[0] in {step.value for step in found.steps}
    for step in found.steps:
        true = max(case.errors(step.value, found.knowledge.activations[step.value].values))
        assert true < 1e-4
        assert true < 10 * max(step.error)


def test_a_gradient_in_float64_leaves_nothing(residual_case: Cases, residual_network: Cases) -> None:
    case = residual_case(2, 0, residual_network(0, normed_skips=True), TRAIN, torch.float64)
    found = case.derived()
    deepest = found.knowledge.activations[case.graph.by_name["3.conv1"].inputs[0]]
    assert max(case.errors(case.graph.by_name["3.conv1"].inputs[0], deepest.values)) < 1e-6


def test_skips_without_batch_norm_see_the_scale_and_still_lead_on(
    residual_case: Cases, residual_network: Cases
) -> None:
    case = residual_case(2, 0, residual_network(0), TRAIN)
    found = case.derived()
    for step in found.steps:
        assert max(case.errors(step.value, found.knowledge.activations[step.value].values)) < 1e-3
    assert "input before batch statistics" in {step.rule for step in found.steps}


def test_channels_whose_scale_is_negative_are_solved_alike(residual_case: Cases, residual_network: Cases) -> None:
    model = residual_network(0, normed_skips=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[::3] *= -1
    case = residual_case(2, 0, model, TRAIN)
    found = case.derived()
    value = case.graph.by_name["3.conv1"].inputs[0]
    assert max(case.errors(value, found.knowledge.activations[value].values)) < 1e-4


def test_the_derivative_behind_batch_statistics_is_that_of_the_loss(
    residual_case: Cases, residual_network: Cases
) -> None:
    case = residual_case(2, 0, residual_network(0, normed_skips=True), TRAIN)
    found = case.derived().knowledge
    # The mean over places in front of the final layer hands each place of a channel the same derivative, if it is open.
    name = "4.bn2"
    arriving = found.arriving[name].values
    open_now = found.units[case.graph.readers(case.graph.readers(name)[0].name)[0].name].is_open
    for image, mask in zip(arriving, open_now, strict=True):
        for channel, some in zip(image, mask, strict=True):
            values = channel[some]
            if len(values) > 1:
                assert float(values.max() - values.min()) < 1e-3 * float(arriving.abs().max())


def test_more_places_than_equations_are_refused_with_their_numbers(
    residual_case: Cases, residual_network: Cases
) -> None:
    case = residual_case(3, 0, residual_network(0, normed_skips=True), TRAIN)
    refused = [one for one in case.derived().refused if one.rule == "input before batch statistics"]
    assert {one.why for one in refused} <= {Why.FEW_EQUATIONS, Why.OPEN, Why.INEXACT}
    for one in refused:
        assert one.places is not None


def test_normalised_is_about_its_mean_and_of_variance_one() -> None:
    values = 3 + 2 * torch.randn(4, 5, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = normalised(values, 0.0)
    torch.testing.assert_close(found.values.mean(dim=(0, 2, 3)), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(found.values.square().mean(dim=(0, 2, 3)), torch.ones(5, dtype=torch.float64))
    assert found.deviation.shape == (5,)


def test_the_scale_is_told_by_the_shift_gradient_though_some_units_are_wrong() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 40, 3, 3, generator=generator, dtype=torch.float64).clamp_min(0)
    through = torch.randn(2, 40, 3, 3, generator=generator, dtype=torch.float64)
    beside = torch.randn(2, 40, 3, 3, generator=generator, dtype=torch.float64)
    is_open = values > 0
    total = ((beside + through / 2.5) * is_open).sum(dim=(0, 2, 3))
    total[:4] += 0.3
    found = scale_by_shift(values, through, beside, total)
    assert found is not None
    assert found.factor == pytest.approx(2.5, rel=1e-9)
    assert scale_by_shift(torch.zeros_like(values), through, beside, total) is None


def test_the_scale_is_told_where_most_channels_have_a_unit_on_the_wrong_side() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 60, 3, 3, generator=generator, dtype=torch.float64).clamp_min(0)
    through = torch.randn(2, 60, 3, 3, generator=generator, dtype=torch.float64)
    total = (through / 2.5 * (values > 0)).sum(dim=(0, 2, 3))
    total[:40] += 0.3 * torch.randn(40, generator=generator, dtype=torch.float64)
    found = scale_by_shift(values, through, None, total)
    assert found is not None
    assert found.factor == pytest.approx(2.5, rel=1e-9)
    assert found.misfit < 1e-6


def test_of_a_scale_on_which_no_channels_agree_the_error_says_so() -> None:
    ratios, stated = list[float](), list[float]()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(2, 60, 3, 3, generator=generator, dtype=torch.float64).clamp_min(0)
        through = torch.randn(2, 60, 3, 3, generator=generator, dtype=torch.float64)
        total = (through / 2.5 * (values > 0)).sum(dim=(0, 2, 3))
        total += 0.1 * total.abs().mean() * torch.randn(60, generator=generator, dtype=torch.float64)
        found = scale_by_shift(values, through, None, total)
        assert found is not None
        ratios.append(abs(found.factor / 2.5 - 1) / found.error)
        stated.append(found.error)
    assert max(ratios) < 10
    assert min(stated) > 1e-3


def test_few_known_units_tell_no_scale() -> None:
    assert scale_by_known(torch.ones(1, 1, 2, 2, dtype=torch.float64), None) is None

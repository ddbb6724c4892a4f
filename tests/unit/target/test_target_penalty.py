"""A penalty on the weights inside the gradient is read off it, with the tensors that it spares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradinversion.capture import Penalty, apply_defence, assumed, told
from gradinversion.target.penalty import check_penalty
from torch import Tensor

_LAST = ("13.weight", "13.bias")
Spares = Callable[[str, Tensor], bool]


def _nothing(name: str, weight: Tensor) -> bool:
    return False


def _biases(name: str, weight: Tensor) -> bool:
    return weight.ndim == 1


def _last(name: str, weight: Tensor) -> bool:
    return name in _LAST


def _all_but_inner_weights(name: str, weight: Tensor) -> bool:
    return weight.ndim == 1 or name in _LAST


@pytest.mark.parametrize("spares", [_nothing, _biases, _last, _all_but_inner_weights])
@pytest.mark.parametrize(("l2", "l1"), [(5e-4, 0.0), (5e-3, 0.0), (0.0, 1e-5)])
def test_the_penalty_is_read_exactly(make_case: Callable[..., Any], l2: float, l1: float, spares: Spares) -> None:
    case = make_case()
    weights = case.weights
    spared = tuple(name for name, weight in weights.items() if spares(name, weight))
    penalty = Penalty(l2, l1, spared)
    sent = case.sending(lambda name, g: g + penalty.term(name, weights[name]))
    finding = check_penalty(sent, case.model)
    found = finding.facts["penalty"].value
    assert (found.l2, found.l1) == pytest.approx((l2, l1), rel=1e-3)
    assert set(found.spared) == set(spared)
    assert "penalty" in finding.messages[0]
    assert "whatever the client says" in finding.messages[0]
    assert not finding.contradictions


@pytest.mark.parametrize(("l2", "l1"), [(1e-4, 1e-5), (1.2345e-4, 0.0)])
def test_both_kinds_and_odd_factors(make_case: Callable[..., Any], l2: float, l1: float) -> None:
    case = make_case()
    penalty = Penalty(l2, l1)
    sent = case.sending(lambda name, g: g + penalty.term(name, case.weights[name]))
    found = check_penalty(sent, case.model).facts["penalty"].value
    assert (found.l2, found.l1) == pytest.approx((l2, l1), rel=1e-3)


def test_a_penalty_behind_batch_statistics(make_case: Callable[..., Any]) -> None:
    case = make_case("resnet18", batch_norm="train_private")
    sent = case.sending(lambda name, g: g if name.startswith("fc") else g + 5e-4 * case.weights[name])
    found = check_penalty(sent, case.model).facts["penalty"].value
    assert found == Penalty(5e-4, 0.0, ("fc.weight", "fc.bias"))


def test_a_clean_gradient_a_told_penalty_and_noise_are_left_alone(make_case: Callable[..., Any]) -> None:
    case = make_case()
    assert not check_penalty(case.update, case.model).facts
    assert not check_penalty(case.update.stating(penalty=assumed(Penalty())), case.model).facts
    noisy = apply_defence(case.update.gradients, "noise", 0.1, torch.Generator().manual_seed(0))
    assert not check_penalty(case.sending(lambda name, g: noisy[name]), case.model).facts
    sent = case.sending(lambda name, g: g + 5e-4 * case.weights[name])
    finding = check_penalty(sent.stating(penalty=told(Penalty(5e-4))), case.model)
    assert not finding.facts
    assert not finding.contradictions


def test_a_told_penalty_that_is_not_there_is_contradicted(make_case: Callable[..., Any]) -> None:
    case = make_case()
    finding = check_penalty(case.update.stating(penalty=told(Penalty(5e-4))), case.model)
    assert "sums to zero" in finding.contradictions["penalty"]

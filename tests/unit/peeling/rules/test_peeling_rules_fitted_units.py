"""Units of a segment on the wrong side, in between and at its ends, shown by the gradients in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from gradinversion.peeling.kinds import Rectifier
from gradinversion.peeling.rules.fitted_units import fitted_units
from gradinversion.peeling.rules.rule import Setting
from gradinversion.peeling.rules.segment import find_segment
from torch import nn


def test_units_near_zero_that_are_wrong_are_switched_back(
    residual_case: Callable[..., Any], residual_network: Callable[..., nn.Sequential]
) -> None:
    case = residual_case(3, 0, residual_network(0))
    setting = Setting(case.graph, case.gradients, 3, 3e-2)
    segment = find_segment(setting, case.derived().knowledge)
    if segment is None or not segment.rectifiers:
        known = case.derived().knowledge
        rectifiers = [node.name for node in case.graph.nodes if isinstance(node.kind, Rectifier)]
        kept = {name: one for name, one in known.activations.items() if name in rectifiers[2:]}
        segment = find_segment(setting, replace(known, activations=kept))
    assert segment is not None
    assert segment.rectifiers
    order = torch.cdist(segment.ends[0].target.flatten(1), _truth(case, segment).flatten(1)).argmin(dim=1)
    entering = case.truth[segment.value][order].float()
    values = segment.run(entering, lambda _, value: value.clamp_min(0))
    fronts = {name: values[segment.graph.by_name[name].inputs[0]] for name in segment.rectifiers}
    right = {name: front > 0 for name, front in fronts.items()}
    error = 0.02
    wrong = {name: one ^ (fronts[name].abs() < error * fronts[name].std()) for name, one in right.items()}
    assert any(not torch.equal(wrong[name], right[name]) for name in right)
    found, units = fitted_units(segment, entering, wrong, error)
    before = sum(int((wrong[name] != right[name]).sum()) for name in right)
    after = sum(int((units[name] != right[name]).sum()) for name in right)
    assert after < 0.2 * before
    assert all(torch.equal(one.is_open, other.is_open) for one, other in zip(found.ends, segment.ends, strict=True))


def _truth(case: Any, segment: Any) -> torch.Tensor:
    front: torch.Tensor = case.truth[segment.ends[0].before]
    return front.clamp_min(0).float()

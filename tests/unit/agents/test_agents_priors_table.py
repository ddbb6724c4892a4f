"""A prior is an equation, a weight and a line in the table; nothing else has to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from gradinversion.agents import Objective, ObjectiveConfig
from gradinversion.agents.objective_config import PRIORS, HeldAgainst, Prior
from gradinversion.priors import Statistics
from torch import Tensor

_QUIET: dict[str, Any] = {"total_variation_weight": 0.0, "batch_norm_weight": 0.0, "group_weight": 0.0}


@dataclass(frozen=True)
class _WithAnother(ObjectiveConfig):
    other_weight: float = 0.25


def _darkness(images: Tensor) -> Tensor:
    return images.mean()


def _likeness(images: Tensor, consensus: Tensor) -> Tensor:
    return (images * consensus).mean()


def _spread(found: dict[str, Statistics], target: dict[str, Statistics]) -> Tensor:
    return torch.stack([found[name][1].sum() / target[name][1].sum() for name in target]).sum()


@pytest.fixture(params=[(_darkness, HeldAgainst.NOTHING), (_likeness, HeldAgainst.CONSENSUS)], ids=["alone", "group"])
def another(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    equation, target = request.param
    monkeypatch.setitem(PRIORS, "other", Prior(lambda config: equation, target))
    return equation


def test_a_prior_that_is_in_the_table_is_a_term(
    smooth_target: Callable[..., Any], another: Callable[..., Tensor]
) -> None:
    target, truth = smooth_target()
    images, consensus = truth + 0.3, truth + 0.1
    terms = Objective(target, _WithAnother(**_QUIET)).terms(images, consensus)
    expected = another(images, consensus) if another is _likeness else another(images)
    assert terms.keys() == {"gradient", "other", "total"}
    assert torch.equal(terms["other"], expected)
    assert torch.equal(terms["total"], terms["gradient"] + 0.25 * expected)


def test_a_prior_of_the_statistics_is_given_both(
    smooth_target: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRIORS, "other", Prior(lambda config: _spread, HeldAgainst.STATISTICS))
    target, truth = smooth_target("train_shared")
    terms = Objective(target, _WithAnother(**_QUIET | {"batch_norm_weight": 0.5})).terms(truth)
    assert terms.keys() == {"gradient", "batch_norm", "other", "total"}
    assert float(terms["other"].detach()) == pytest.approx(2, rel=1e-4)  # two layers, at the private images


def test_without_a_consensus_there_is_nothing_to_hold_a_batch_against(smooth_target: Callable[..., Any]) -> None:
    target, truth = smooth_target()
    assert "group" not in Objective(target, ObjectiveConfig(group_weight=1.0)).terms(truth)


def test_a_prior_without_weight_is_left_out(smooth_target: Callable[..., Any], another: Callable[..., Tensor]) -> None:
    target, truth = smooth_target()
    assert "other" not in Objective(target, _WithAnother(**_QUIET, other_weight=0.0)).terms(truth, truth)


@pytest.mark.usefixtures("another")
def test_the_weight_of_another_prior_is_checked_and_counted() -> None:
    with pytest.raises(ValueError, match=r"objective\.other_weight=-1\.0: give a finite number"):
        _WithAnother(other_weight=-1.0)
    alone = PRIORS["other"].target is HeldAgainst.NOTHING
    assert _WithAnother(gradient_weight=0.0, l2_weight=0.0, **_QUIET).empty == (not alone)
    assert _WithAnother(gradient_weight=0.0, other_weight=0.0, **_QUIET).empty


def test_each_prior_has_a_weight_among_the_settings() -> None:
    config = ObjectiveConfig()
    assert all(config.weight(name) >= 0 for name in PRIORS)

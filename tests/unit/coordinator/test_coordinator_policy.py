"""Decisions of the coordinator as pure functions."""

from __future__ import annotations

import pytest
import torch
from gradinversion.agents import Candidate, Outcome
from gradinversion.coordinator import CoordinatorConfig
from gradinversion.coordinator.policy import fresh, plan_rounds, usable


def candidate(step: int, outcome: Outcome = Outcome.RUNNING) -> Candidate:
    return Candidate(torch.zeros(1, 3, 4, 4), 0, 0, step, {}, outcome)


def test_rounds_cover_all_steps_and_the_last_forms_a_consensus() -> None:
    rounds = plan_rounds(250, CoordinatorConfig(period=100, start=1.0))
    assert [r.until_step for r in rounds] == [100, 200, 250]
    assert [r.forms_consensus for r in rounds] == [False, False, True]


def test_consensus_starts_at_its_share_of_the_steps() -> None:
    rounds = plan_rounds(400, CoordinatorConfig(period=100, start=0.5))
    assert [r.forms_consensus for r in rounds] == [False, True, True, True]


def test_a_period_longer_than_the_run_gives_one_round() -> None:
    assert [r.until_step for r in plan_rounds(30, CoordinatorConfig(period=100))] == [30]


def test_failed_seeds_are_not_usable() -> None:
    found = usable([candidate(5), candidate(5, Outcome.DROPPED), candidate(5, Outcome.FINISHED)])
    assert found == [0, 2]


def test_stale_candidates_are_left_out() -> None:
    config = CoordinatorConfig(period=10, staleness=2)
    assert fresh([candidate(step) for step in (100, 80, 79, 100, 100)], config) == [0, 1, 3, 4]
    assert fresh([candidate(1, Outcome.DROPPED)], config) == []


@pytest.mark.parametrize("wrong", [{"period": 0}, {"start": 1.5}, {"staleness": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give"):
        CoordinatorConfig(**wrong)  # type: ignore[arg-type]

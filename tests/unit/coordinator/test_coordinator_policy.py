"""Decisions of the coordinator as pure functions."""

from __future__ import annotations

import math
from typing import Any

import pytest
from gradinversion.agents import AgentsConfig, Outcome, Standing
from gradinversion.coordinator import CoordinatorConfig, Phase, Wait
from gradinversion.coordinator.policy import Go, decide_members, enough_done, fresh, give_up, plan_rounds, usable


def standing(step: int, outcome: Outcome = Outcome.RUNNING) -> Standing:
    return Standing(0, 0, step, {}, outcome)


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
    found = usable([standing(5), standing(5, Outcome.DROPPED), standing(5, Outcome.FINISHED)])
    assert found == [0, 2]


def test_stale_candidates_are_left_out() -> None:
    config = CoordinatorConfig(period=10, staleness=2)
    assert fresh([standing(step) for step in (100, 80, 79, 100, 100)], config) == [0, 1, 3, 4]
    assert fresh([standing(1, Outcome.DROPPED)], config) == []


@pytest.mark.parametrize("wrong", [{"period": 0}, {"start": 1.5}, {"staleness": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give"):
        CoordinatorConfig(**wrong)  # type: ignore[arg-type]


def agents(**more: Any) -> AgentsConfig:
    return AgentsConfig(**({"count": 4, "minimum": 2, "patience": 60.0} | more))


@pytest.mark.parametrize(
    ("present", "room", "waited", "expected"),
    [
        ({0, 1, 2, 3}, 4, 0.0, Go((0, 1, 2, 3))),
        ({3, 0, 1, 2}, 9, 0.0, Go((0, 1, 2, 3))),
        ({1, 3}, 2, 0.0, Go((1, 3))),  # nobody else has room
        ({1, 3}, 4, 60.0, Go((1, 3))),  # patience is over
        ({1, 3}, 4, math.inf, Go((1, 3))),  # a run under way waits for nobody
        ({0, 1, 2}, 2, 0.0, Go((0, 1, 2))),  # more than fit now: a node has just been lost
    ],
)
def test_a_round_begins(present: set[int], room: int, waited: float, expected: Go) -> None:
    assert decide_members(present, room, waited, agents()) == expected


@pytest.mark.parametrize(
    ("present", "room", "waited", "wait", "words"),
    [
        ({1, 3}, 4, 59.9, Wait(Phase.WAITING, 2, 4), "waiting for agents: 2 of 4 have a process"),
        (set(), 4, 0.0, Wait(Phase.WAITING, 0, 4), "waiting for agents: 0 of 4 have a process"),
        ({1, 3}, 3, 0.0, Wait(Phase.WAITING, 2, 3), "waiting for agents: 2 of 3 have a process"),
        ({1}, 4, 60.0, Wait(Phase.PAUSED, 1, 2), "paused: 1 of at least 2 agents is present, waiting for nodes"),
        ({1}, 1, 0.0, Wait(Phase.PAUSED, 1, 2), "paused: 1 of at least 2 agents is present, waiting for nodes"),
        (set(), 0, math.inf, Wait(Phase.PAUSED, 0, 2), "paused: 0 of at least 2 agents are present, waiting for nodes"),
    ],
)
def test_a_round_waits_and_says_for_what(present: set[int], room: int, waited: float, wait: Wait, words: str) -> None:
    assert decide_members(present, room, waited, agents()) == wait
    assert str(wait) == words
    assert wait.paused == (wait.phase is Phase.PAUSED)


@pytest.mark.parametrize(
    ("lost", "others", "expected"),
    [(59.9, 3, False), (60.0, 3, True), (60.0, 2, True), (60.0, 1, False), (math.inf, 0, False)],
)
def test_a_lost_agent_is_given_up_only_after_a_while_and_by_enough_others(
    lost: float, others: int, expected: bool
) -> None:
    assert give_up(lost, others, agents()) is expected


@pytest.mark.parametrize(
    ("done", "members", "last_round", "waits_for_all", "expected"),
    [
        (3, 4, False, True, False),
        (4, 4, False, True, True),
        (3, 4, True, False, False),
        (4, 4, True, False, True),
        (2, 4, False, False, False),
        (3, 4, False, False, True),
        (1, 3, False, False, False),
        (2, 3, False, False, True),
        (0, 1, False, False, False),
        (1, 1, False, False, True),
        (0, 0, False, True, True),  # all left
    ],
)
def test_a_round_ends_with_all_or_with_the_middle_one(
    done: int, members: int, last_round: bool, waits_for_all: bool, expected: bool
) -> None:
    assert enough_done(done, members, last_round, waits_for_all) is expected

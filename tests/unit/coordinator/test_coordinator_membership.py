"""Agents that come late, leave and come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import Outcome
from gradinversion.capture import UpdateError
from gradinversion.coordinator import (
    AttackConfig,
    CandidatesLostError,
    Phase,
)

Before = Callable[[], object]


@pytest.fixture
def config(config: AttackConfig) -> AttackConfig:
    """Three seeds, rounds to the steps 10, 20, 30 and 40, a consensus from step 20 on. Nobody is waited for."""
    return replace(config, agents=replace(config.agents, patience=0.0))


# Before the first round.


def test_agents_are_placed_while_the_update_is_looked_at(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, done = run(), []
    monkeypatch.setattr(one.group, "place", lambda listener: done.append("place"))

    def prepare(*arguments: Any) -> Any:
        done.append("prepare")
        raise UpdateError("no")

    monkeypatch.setattr("gradinversion.coordinator.coordinator.prepare", prepare)
    with pytest.raises(UpdateError):
        one()
    assert done == ["place", "prepare"]


# Who comes late.


@pytest.mark.parametrize("round", [1, 2, 3])
def test_a_seed_that_comes_late_joins_near_the_consensus(run: Callable[..., Any], round: int) -> None:
    one = run()
    one.group.here = {0, 2}
    # The membership of a round is decided before it begins.
    one.before = {round - 1: lambda: one.group.here.add(1)}
    result = one()
    assert one.members == [[0, 2]] * round + [[0, 1, 2]] * (4 - round)
    assert result.outcome is Outcome.FINISHED
    assert [candidate.seed for candidate in result.candidates] == [0, 1, 2]
    assert all(candidate.step == 40 for candidate in result.candidates)
    assert any(message.startswith("Seed 1 joined from the consensus") for message in result.messages)
    origin = one.group.rounds[round][1].origin
    assert origin.step == 10 * round
    consensus = one.group.rounds[round][0].current.consensus
    if consensus is not None:
        assert torch.equal(origin.start, consensus)


def test_who_comes_late_changes_nothing_for_the_others_before(run: Callable[..., Any]) -> None:
    alone, joined = run(), run()
    alone.group.here = joined.group.here = {0, 2}
    joined.group.here = {0, 2}
    joined.before = {2: lambda: joined.group.here.add(1)}
    first, second = alone(), joined()
    rows = [[row for row in result.history if row["step"] <= 30] for result in (first, second)]
    assert [{k: v for k, v in row.items() if k != "steps_per_second"} for row in rows[0]] == [
        {k: v for k, v in row.items() if k != "steps_per_second"} for row in rows[1]
    ]


def test_the_same_comings_and_goings_give_the_same_bits(run: Callable[..., Any]) -> None:
    results = []
    for _ in range(2):
        one = run()
        one.group.here = {0, 1}
        one.before = {
            0: lambda here=one.group.here: here.add(2),
            2: lambda here=one.group.here: here.discard(0),
        }
        results.append(one())
    assert torch.equal(results[0].images, results[1].images)


def test_all_that_have_room_are_waited_for_at_the_beginning(run: Callable[..., Any], config: AttackConfig) -> None:
    one = run(replace(config, agents=replace(config.agents, patience=1e9)))
    one.group.here, one.group.room = set(), lambda: 3
    phases: list[str] = []

    def change(looks: int) -> None:
        phases.append(one.coordinator.status.doing)
        one.group.here |= {looks} if looks < 3 else set()

    one.at_presence(change)
    one()
    assert one.members == [[0, 1, 2]] * 4
    assert phases[1:3] == [
        "waiting for agents: 1 of 3 have a process",
        "waiting for agents: 2 of 3 have a process",
    ]


def test_nobody_is_waited_for_that_has_no_room(run: Callable[..., Any], config: AttackConfig) -> None:
    one = run(replace(config, agents=replace(config.agents, patience=1e9)))
    one.group.here, one.group.room = {0, 1}, lambda: 2
    one()
    assert one.members == [[0, 1]] * 4


# Who leaves.


def test_a_seed_that_is_lost_for_good_leaves_and_does_not_hurt(run: Callable[..., Any], tmp_path: Path) -> None:
    one = run(out=tmp_path)
    one.before = {2: lambda: one.group.here.discard(1)}
    result = one()
    assert one.members[:4] == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 2]]
    assert result.outcome is Outcome.FINISHED
    assert [candidate.seed for candidate in result.candidates] == [0, 2]
    assert [row["seeds"] for row in result.registration] == [3, 2, 2]
    # The round in which it was lost is saved without it, and so are those after.
    assert one.coordinator.status.saved_round == 3
    assert one.saved_seeds() == {0, 2}
    assert [seed.present for seed in one.coordinator.status.seeds] == [True, False, True]


def test_a_seed_that_comes_back_begins_near_the_consensus(run: Callable[..., Any], tmp_path: Path) -> None:
    one = run(out=tmp_path)
    one.before = {1: lambda: one.group.here.discard(1), 2: lambda: one.group.here.add(1)}
    result = one()
    assert one.members[:4] == [[0, 1, 2], [0, 1, 2], [0, 2], [0, 1, 2]]
    before, after = one.group.rounds[1][1].origin, one.group.rounds[3][1].origin
    assert before.stint != after.stint
    assert (after.step, after.state) == (30, None)
    assert torch.equal(after.start, one.group.rounds[3][0].current.consensus)
    assert len(one.group.rounds[3][1].legs) == 1
    assert {candidate.seed for candidate in result.candidates} == {0, 1, 2}
    assert one.saved_seeds() == {0, 1, 2}


def test_a_lost_seed_is_waited_for_where_the_others_are_too_few(run: Callable[..., Any], config: AttackConfig) -> None:
    one = run(replace(config, agents=replace(config.agents, minimum=2)))
    asked: list[bool] = []
    run_round = one.group.run_round

    def gives_up(orders: Any, enough: Any, give_up: Any) -> Any:
        asked.extend([give_up(1e9, 1), give_up(1e9, 2)])
        return run_round(orders, enough, give_up)

    one.group.run_round = gives_up
    one()
    assert asked[:2] == [False, True]


# Too few.


def test_with_fewer_than_the_minimum_it_pauses_and_says_so(run: Callable[..., Any], config: AttackConfig) -> None:
    one = run(replace(config, agents=replace(config.agents, minimum=3)))
    one.group.here = {0}
    phases: list[str] = []

    def change(looks: int) -> None:
        phases.append(one.coordinator.status.doing)
        if looks == 4:
            one.group.here |= {1, 2}

    one.at_presence(change)
    result = one()
    assert one.members == [[0, 1, 2]] * 4
    assert set(phases[1:5]) == {"paused: 1 of at least 3 agents is present, waiting for nodes"}
    paused = [message for message in result.messages if message.startswith("Paused")]
    assert paused == ["Paused: 1 of at least 3 agents is present, waiting for nodes."]
    assert any("the run goes on" in message for message in result.messages)


# Candidates that are lost after the round.


def loses_once(run: Any, name: str, positions: list[int], then: Before = lambda: None) -> None:
    """Lose candidates when a consensus is formed of them (``form_consensus``) or at the final choice (``fetch``)."""
    method = getattr(run.group, name)

    def fails(*arguments: Any) -> Any:
        if name == "fetch" and run.coordinator.status.phase is not Phase.CHOOSING:
            return method(*arguments)
        setattr(run.group, name, method)
        then()
        raise CandidatesLostError(positions)

    setattr(run.group, name, fails)


@pytest.mark.parametrize(("name", "again"), [("form_consensus", 2), ("fetch", 4)])
@pytest.mark.parametrize("positions", [[1], [0, 1, 2]], ids=["one", "all"])
def test_a_lost_candidate_is_made_again(run: Callable[..., Any], name: str, again: int, positions: list[int]) -> None:
    whole, one = run()(), run()
    loses_once(one, name, positions)
    result = one()
    assert torch.equal(result.images, whole.images)
    assert torch.equal(result.consensus, whole.consensus)
    assert one.members[again] == positions
    first, second = one.group.rounds[again - 1][1], one.group.rounds[again][1]
    assert first.origin.stint == second.origin.stint
    assert [leg.round for leg in first.legs] == [leg.round for leg in second.legs]
    assert len(result.history) == len(whole.history)


def test_a_candidate_that_is_lost_with_its_seed_is_left_out(run: Callable[..., Any]) -> None:
    one = run()
    loses_once(one, "form_consensus", [1], then=lambda: one.group.here.discard(1))
    result = one()
    assert [row["seeds"] for row in result.registration] == [2, 2, 2]
    assert [candidate.seed for candidate in result.candidates] == [0, 2]


def test_so_is_one_that_is_lost_at_the_very_end(run: Callable[..., Any], tmp_path: Path) -> None:
    one = run(out=tmp_path)
    loses_once(one, "fetch", [1], then=lambda: one.group.here.discard(1))
    result = one()
    assert [candidate.seed for candidate in result.candidates] == [0, 2]
    assert one.coordinator.status.saved_round == 3

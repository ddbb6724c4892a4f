"""A coordinator that is stopped, replaced, or continued elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import AgentsConfig, Outcome
from gradinversion.capture import CapturedUpdate
from gradinversion.coordinator import (
    AttackConfig,
    CheckpointStore,
    FencedError,
    Storage,
)
from gradinversion.coordinator.identity import identity


@pytest.fixture
def config(config: AttackConfig) -> AttackConfig:
    """Three seeds, rounds to the steps 10, 20, 30 and 40, a consensus from step 20 on. Nobody is waited for."""
    return replace(config, agents=replace(config.agents, patience=0.0))


# Resume.


class _Killed(KeyboardInterrupt):
    pass


def kill() -> None:
    raise _Killed


@pytest.mark.parametrize("killed_before", [1, 2, 3])
def test_resume_with_a_seed_that_is_missing_in_the_checkpoint(
    run: Callable[..., Any], tmp_path: Path, killed_before: int
) -> None:
    one = run(out=tmp_path, before={killed_before: kill})
    one.group.here = {0, 2}
    with pytest.raises(_Killed):
        one()
    assert one.saved_seeds() == {0, 2}
    again = run(out=tmp_path, resume=True)
    result = again()
    # Before there is a consensus nobody has shown yet where to begin: it joins a round later.
    joins = 1 if killed_before == 1 else 0
    assert again.members[: joins + 1] == [[0, 2]] * joins + [[0, 1, 2]]
    assert again.group.rounds[0][0].origin.state is not None
    origin = again.group.rounds[joins][1].origin
    assert (origin.state, origin.step) == (None, 10 * (killed_before + joins))
    assert origin.start is not None
    assert {candidate.seed for candidate in result.candidates} == {0, 1, 2}
    assert all(candidate.step == 40 for candidate in result.candidates)


def test_resume_without_a_seed_that_is_in_the_checkpoint(run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(_Killed):
        run(out=tmp_path, before={3: kill})()
    again = run(out=tmp_path, resume=True)
    again.group.here = {0, 2}
    result = again()
    assert again.members[0] == [0, 2]
    assert [candidate.seed for candidate in result.candidates] == [0, 2]


@pytest.mark.parametrize("killed_in", ["_conclude", "keep"])
def test_resume_after_the_last_round_gives_the_same_images(
    run: Callable[..., Any], tmp_path: Path, killed_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run()()
    one = run(out=tmp_path)

    def dies(*arguments: Any) -> None:
        if killed_in == "_conclude":
            one.coordinator._save_last(arguments[0])
        raise _Killed

    monkeypatch.setattr(one.coordinator, killed_in, dies)
    with pytest.raises(_Killed):
        one()
    again = run(out=tmp_path, resume=True)
    result = again()
    assert result.outcome is Outcome.FINISHED
    assert torch.equal(result.images, whole.images)
    assert result.gradient_loss == whole.gradient_loss
    assert [row["step"] for row in result.history] == [row["step"] for row in whole.history]


# Stop.


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_stopped_run_has_a_result_and_can_be_continued(run: Callable[..., Any], tmp_path: Path, after: int) -> None:
    whole = run()()
    one = run(out=tmp_path)
    one.before = {after - 1: one.coordinator.stop}
    stopped = one()
    assert stopped.outcome is Outcome.INTERRUPTED
    assert (stopped.rounds, stopped.iterations) == (after, 10 * after)
    assert one.coordinator.status.saved_round == after - 1
    again = run(out=tmp_path, resume=True)
    result = again()
    assert result.outcome is Outcome.FINISHED
    assert again.group.rounds[0][0].current.round == after
    assert torch.equal(result.images, whole.images)


def test_what_is_only_done_for_a_stopped_run_s_result_is_not_continued_from(
    run: Callable[..., Any], config: AttackConfig, tmp_path: Path
) -> None:
    late = replace(config, coordinator=replace(config.coordinator, start=1.0))
    whole = run(late)()
    one = run(late, out=tmp_path)
    one.before = {1: one.coordinator.stop}
    save, failed = one.group.save, list[int]()

    def fails_once(position: int, index: int) -> Any:
        # So that this round is saved at the very end, when there is a consensus for the result.
        if index == 1 and not failed:
            failed.append(position)
            return "the disk is full"
        return save(position, index)

    one.group.save = fails_once
    stopped = one()
    assert failed
    assert torch.isfinite(stopped.consensus).all()
    assert one.coordinator.status.saved_round == 1
    assert torch.equal(run(late, out=tmp_path, resume=True)().images, whole.images)


def test_a_run_that_was_stopped_before_it_began_ends_after_one_round(run: Callable[..., Any]) -> None:
    one = run()
    one.coordinator.stop()
    result = one()
    assert result.outcome is Outcome.INTERRUPTED
    assert len(one.members) == 1


def test_stop_in_the_last_round_is_no_interruption(run: Callable[..., Any]) -> None:
    one = run()
    one.before = {3: one.coordinator.stop}
    assert one().outcome is Outcome.FINISHED


def test_a_paused_run_can_be_stopped(run: Callable[..., Any], config: AttackConfig) -> None:
    one = run(replace(config, agents=replace(config.agents, minimum=3)))
    one.group.here = {0}
    one.at_presence(lambda looks: one.coordinator.stop() if looks == 3 else None)
    assert one().outcome is Outcome.INTERRUPTED


# Two coordinators.


@pytest.mark.parametrize("claimed_before", [1, 3])
def test_a_coordinator_whose_run_another_one_took_over_ends(
    run: Callable[..., Any], tmp_path: Path, update: CapturedUpdate, config: AttackConfig, claimed_before: int
) -> None:
    whole = run()()

    def claim() -> None:
        CheckpointStore(Storage(tmp_path), identity(config, update)).claim()

    one = run(out=tmp_path, before={claimed_before: claim})
    with pytest.raises(FencedError, match="epoch 2, this one has 1"):
        one()
    again = run(out=tmp_path, resume=True)
    assert torch.equal(again().images, whole.images)
    # A fresh epoch: agents take its orders, and none of the others' any more.
    assert {order.epoch for orders in again.group.rounds for order in orders.values()} == {3}


def test_all_seeds_may_be_one(run: Callable[..., Any], config: AttackConfig) -> None:
    one = run(replace(config, agents=AgentsConfig(count=1, iterations=20, warmup=2, patience=0.0)))
    assert one().outcome is Outcome.FINISHED

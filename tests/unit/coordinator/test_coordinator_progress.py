"""What the rounds have produced, and its way through a checkpoint."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from gradinversion.agents import Account, Failure, Outcome
from gradinversion.coordinator import CheckpointError, EventKind
from gradinversion.coordinator.progress import Progress, steps_per_second
from gradinversion.registration import Consensus, LeftOut


def account(
    seed: int = 3, outcome: Outcome = Outcome.RUNNING, failures: tuple[Failure, ...] = (), seconds: float = 2.0
) -> Account:
    trace = ({"step": 10.0, "total": 0.5}, {"step": 20.0, "total": math.nan})
    return Account(seed, 1, 20, {"total": 0.25}, outcome, None, seconds, failures, trace)


def consensus(left_out: tuple[LeftOut, ...] = ()) -> Consensus:
    rejected = torch.tensor([[True, False], [False, False]])
    return Consensus(torch.rand(2, 3, 8, 8), torch.tensor([0.5, 1.0]), (0, 3), 4, None, rejected, left_out)


@pytest.fixture
def progress() -> Progress:
    progress = Progress(next_round=5, seconds=12.5, deaths={0: 2, 11: 1})
    progress.record(4, account(failures=(Failure(7, Outcome.NOT_FINITE, 1, 2),)))
    progress.agree(consensus(left_out=(LeftOut(1, "it is not finite"),)), torch.tensor([[0, 1], [1, 0]]), 20)
    return progress


def through_json(progress: Progress) -> Progress:
    """As a new coordinator reads it, which has said something already."""
    found = Progress()
    found.events.note(EventKind.NOTE, "Continued.")
    facts: dict[str, Any] = json.loads(json.dumps(progress.facts()))
    found.restore(progress.next_round - 1, facts, progress.tensors())
    return found


def test_it_comes_back_as_it_was(progress: Progress) -> None:
    found = through_json(progress)
    assert (found.next_round, found.seconds, found.deaths) == (5, 12.5, {0: 2, 11: 1})
    assert repr(found.history) == repr(progress.history)  # not a number is not equal to itself
    assert found.registration == progress.registration
    assert found.events.messages() == (*progress.events.messages(), "Continued.")
    assert found.permutations is not None
    assert torch.equal(found.permutations, torch.tensor([[0, 1], [1, 0]]))
    before, after = progress.consensus, found.consensus
    assert before is not None
    assert after is not None
    assert (after.seeds, after.round) == ((0, 3), 4)
    for name in ("images", "agreement", "rejected"):
        assert torch.equal(getattr(before, name), getattr(after, name))
        assert getattr(before, name).dtype == getattr(after, name).dtype


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("history", None), ("registration", 3), ("events", {"left_out": 0, "events": [{}]}), ("events", [])),
        *(("deaths", {"x": 1}), ("deaths", []), ("seconds", "soon"), ("seconds", None), ("seconds", 10**400)),
    ],
)
def test_a_whole_file_of_no_progress_is_refused(progress: Progress, name: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"round 5 is whole but cannot be read .* begin anew with restart=true"):
        Progress().restore(4, progress.facts() | {name: value}, progress.tensors())
    with pytest.raises(CheckpointError, match="does not have the entries"):
        Progress().restore(4, {key: kept for key, kept in progress.facts().items() if key != name}, {})


@pytest.mark.parametrize("name", ["orders", "images", "seeds", "rejected"])
def test_tensors_that_lack_one_are_refused(progress: Progress, name: str) -> None:
    tensors = {key: kept for key, kept in progress.tensors().items() if key != name}
    with pytest.raises(CheckpointError, match=name):
        Progress().restore(4, progress.facts(), tensors)


def test_twice_there_and_back_is_once(progress: Progress) -> None:
    once = through_json(progress)
    again = Progress()
    again.restore(4, json.loads(json.dumps(once.facts())), once.tensors())
    assert repr(again.facts()) == repr(once.facts())
    assert again.tensors().keys() == once.tensors().keys()


def test_before_there_is_a_consensus_there_are_no_tensors() -> None:
    progress = Progress(next_round=1)
    assert progress.tensors() == {}
    found = through_json(progress)
    assert (found.consensus, found.permutations, found.next_round) == (None, None, 1)


def test_what_a_checkpoint_got_does_not_change_afterwards(progress: Progress) -> None:
    facts, tensors = progress.facts(), progress.tensors()
    kept = copy.deepcopy((facts, tensors))
    progress.record(5, account(seed=4, failures=(Failure(9, Outcome.DIVERGED, 1, 2),)))
    progress.deaths[0] = 9
    assert progress.permutations is not None
    progress.permutations[1] = torch.tensor([0, 1])  # a seed that came back
    progress.agree(consensus(), torch.tensor([[0, 1], [0, 1]]), 30)
    assert repr(facts) == repr(kept[0])
    for name, tensor in tensors.items():
        assert torch.equal(tensor, kept[1][name]), name


def test_each_row_of_a_curve_says_whose_it_is(progress: Progress) -> None:
    first = progress.history[0]
    assert first == {
        "round": 4,
        "seed": 3,
        "incarnation": 1,
        "step": 10.0,
        "total": 0.5,
        "steps_per_second": 5.0,
    }


def test_the_registration_of_a_round_in_numbers(progress: Progress) -> None:
    assert progress.registration == [{"round": 4, "step": 20, "seeds": 2, "rejected": 0.25, "agreement": 0.75}]


def test_each_failure_is_an_event_and_the_last_of_a_dropped_seed_says_so() -> None:
    progress = Progress()
    failures = Failure(7, Outcome.NOT_FINITE, 1, 1), Failure(9, Outcome.NOT_FINITE, 2, 1)
    progress.record(0, account(outcome=Outcome.DROPPED, failures=failures))
    progress.record(0, account(seed=4, failures=failures[:1]))
    first, second = progress.events.events()
    assert (first.kind, first.seeds, first.round) == (EventKind.SEED_DIVERGED, (3, 4), 0)
    assert (second.kind, second.seeds, second.round) == (EventKind.SEED_DROPPED, (3,), 0)
    assert second.message == (
        "Seed 3 failed at step 9: the loss or the candidate stopped being finite; its 1 restarts are used up, so it is "
        "dropped. (round 0)"
    )


def test_a_seed_that_did_not_compute_has_no_speed() -> None:
    assert steps_per_second(account()) == 5.0
    assert steps_per_second(account(seconds=0.0)) == 0.0
    assert steps_per_second(Account(0, 0, 0, {}, Outcome.RUNNING, seconds=1.0)) == 0.0

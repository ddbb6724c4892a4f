"""What an agent tells of its seed: two accounts become one, and with the images a candidate."""

from __future__ import annotations

from dataclasses import replace

import torch
from gradinversion.agents import Account, Candidate, Failure, Outcome

_ODD, _EVEN = Failure(7, Outcome.DIVERGED, 1, 2), Failure(14, Outcome.NOT_FINITE, 2, 2)
_FIRST = Account(3, 0, 10, {"total": 0.5}, Outcome.RUNNING, None, 1.0, (_ODD,), ({"step": 5.0}, {"step": 10.0}))
_SECOND = Account(3, 0, 20, {"total": 0.25}, Outcome.FINISHED, None, 2.0, (_EVEN,), ({"step": 15.0},))


def test_two_accounts_are_one_about_all_that_happened() -> None:
    both = _SECOND.after(_FIRST)
    assert (both.step, both.outcome, both.losses) == (20, Outcome.FINISHED, {"total": 0.25})
    assert (both.seconds, both.failures) == (3.0, (_ODD, _EVEN))
    assert [row["step"] for row in both.trace] == [5, 10, 15]


def test_losses_that_were_not_told_again_are_those_before() -> None:
    assert replace(_SECOND, losses={}).after(_FIRST).losses == {"total": 0.5}


def test_losses_of_before_the_seed_began_again_are_not_its_own() -> None:
    assert replace(_SECOND, losses={}, incarnation=1).after(_FIRST).losses == {}


def test_what_was_told_does_not_happen_again() -> None:
    told = _FIRST.told()
    assert (told.step, told.losses) == (10, {"total": 0.5})
    assert _SECOND.after(told) == _SECOND


def test_a_candidate_stands_where_its_account_does() -> None:
    images, labels = torch.rand(2, 1, 4, 4), torch.rand(2, 5)
    candidate = replace(_FIRST, labels=labels).with_images(images)
    assert isinstance(candidate, Candidate)
    assert (candidate.seed, candidate.incarnation, candidate.step) == (3, 0, 10)
    assert (candidate.losses, candidate.outcome) == ({"total": 0.5}, Outcome.RUNNING)
    assert candidate.images is images
    assert candidate.labels is labels


def test_a_failure_is_told_of_one_seed_and_of_many() -> None:
    assert _ODD.of("Seed 3") == (
        "Seed 3 failed at step 7: the loss rose far above its best value and stayed there; restart 1 of 2."
    )
    last = replace(_EVEN, incarnation=3)
    assert last.of("seeds 3 and 4") == (
        "seeds 3 and 4 failed at step 14: the loss or the candidate stopped being finite; its 2 restarts are used up, "
        "so it is dropped."
    )
    assert [failure.dropped for failure in (_ODD, _EVEN, last)] == [False, False, True]

"""An agent's rounds: restarts of a seed that fails, the end of its patience, and its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradinversion.agents import Agent, AgentsConfig, Failure, Inverter, ObjectiveConfig, Outcome, agent, learning_rate
from torch import Tensor

_CONFIG = AgentsConfig(iterations=10, warmup=0, learning_rate=0.1, restarts=2, sign=False, box=False)
_STANDS_STILL = 0.0
_SHAPE = (2, 1, 4, 4)


def _after(descends: Agent | Inverter, *run: Any) -> Tensor:
    """The images after a run."""
    descends.run(*run)
    return descends.images


@pytest.fixture
def formula_agent(monkeypatch: pytest.MonkeyPatch, formula_objective: Callable[..., Any]) -> Callable[..., Agent]:
    """An agent whose objective is a formula of images and call number."""

    def make(formula: Callable[[Tensor, int], Tensor], config: AgentsConfig = _CONFIG, seed: int = 3) -> Agent:
        monkeypatch.setattr(agent, "Objective", lambda *known: formula_objective(formula))
        return Agent(None, None, config, seed)  # type: ignore[arg-type]

    return make


def _fails_on(*calls: int, slope: float = _STANDS_STILL) -> Callable[[Tensor, int], Tensor]:
    def formula(images: Tensor, now: int) -> Tensor:
        constant = float("nan") if now in calls else 1.0
        return constant + slope * (images - images.detach()).sum()

    return formula


def test_a_seed_that_fails_starts_again_from_the_consensus(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(_fails_on(6))
    runs.run(4)
    consensus = torch.full(_SHAPE, 5.0)
    account = runs.run(8, consensus)
    assert (account.outcome, account.incarnation, account.step) == (Outcome.RUNNING, 1, 8)
    # The objective is flat, so the account is where it started: the consensus and a little noise.
    assert 0 < float((runs.images - consensus).abs().mean()) < 2 * _CONFIG.learning_rate
    (failure,) = account.failures
    assert (failure.step, failure.incarnation, failure.restarts, failure.dropped) == (7, 1, 2, False)


def test_without_a_consensus_it_starts_from_noise(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(_fails_on(1))
    assert runs.run(4).incarnation == 1
    assert float(runs.images.std()) == pytest.approx(1.0, abs=0.5)
    expected = Inverter(formula_agent(_fails_on())._objective, _CONFIG, seed=3, incarnation=1).images
    torch.testing.assert_close(runs.images, expected)


def test_it_joins_the_round_with_half_the_learning_rate(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(_fails_on(4, slope=1.0))
    runs.run(4)
    consensus = torch.zeros(_SHAPE)
    moved = Inverter(runs._objective, _CONFIG, 3, incarnation=1, step=4, start=consensus).images
    account = runs.run(5, consensus)
    assert (account.incarnation, account.step) == (1, 5)
    rate = learning_rate(4, steps=10, warmup=0, peak=0.05)
    torch.testing.assert_close(moved - runs.images, torch.full(_SHAPE, rate), rtol=1e-4, atol=1e-6)


def test_when_its_restarts_are_used_up_it_is_dropped(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(lambda images, now: images.sum() * float("nan"))
    account = runs.run(4)
    assert account.outcome is Outcome.DROPPED
    assert account.incarnation == 2
    assert account.failures == (
        Failure(1, Outcome.NOT_FINITE, 1, 2),
        Failure(1, Outcome.NOT_FINITE, 2, 2),
        Failure(1, Outcome.NOT_FINITE, 3, 2),
    )
    assert [failure.dropped for failure in account.failures] == [False, False, True]
    assert runs.step == _CONFIG.iterations
    again = runs.run(8)
    assert (again.outcome, again.failures) == (Outcome.DROPPED, ())


def test_no_restarts_at_all(formula_agent: Callable[..., Agent]) -> None:
    config = AgentsConfig(iterations=10, restarts=0)
    assert formula_agent(_fails_on(0), config).run(4).outcome is Outcome.DROPPED


def test_restarts_are_counted_over_all_rounds(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(_fails_on(1, 5, 9))
    outcomes = [runs.run(until).outcome for until in (2, 4, 6)]
    assert outcomes == [Outcome.RUNNING, Outcome.RUNNING, Outcome.DROPPED]


def test_a_step_far_too_large_ends_in_words(smooth_target: Callable[..., Any]) -> None:
    target, _ = smooth_target(dtype=torch.float32)
    config = AgentsConfig(iterations=10, warmup=0, learning_rate=1e30, sign=False, box=False, restarts=1)
    account = Agent(target, ObjectiveConfig(total_variation_weight=1.0), config, seed=0).run(10)
    assert account.outcome is Outcome.DROPPED
    assert account.incarnation == 1
    assert len(account.failures) == 2


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_restored_agent_goes_on_bit_for_bit(smooth_target: Callable[..., Any], noise: float) -> None:
    target, _ = smooth_target(dtype=torch.float32)
    config = AgentsConfig(iterations=10, noise=noise)
    consensus = torch.randn(2, 1, 5, 5)
    whole, before, after = (Agent(target, ObjectiveConfig(), config, seed=4) for _ in range(3))
    whole.run(5)
    last = whole.run(10, consensus)
    before.run(5)
    after.restore(before.state())
    assert after.step == 5
    account = after.run(10, consensus)
    assert account.outcome is Outcome.FINISHED
    assert torch.equal(after.images, whole.images)
    assert account.losses == last.losses


def test_a_dropped_agent_stays_dropped_when_restored(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(lambda images, now: images.sum() * float("nan"))
    runs.run(4)
    restored = formula_agent(_fails_on())
    restored.restore(runs.state())
    assert restored.run(8).outcome is Outcome.DROPPED
    assert restored.step == _CONFIG.iterations


def test_the_count_of_restarts_is_part_of_the_state(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(_fails_on(1, 4))
    runs.run(2)
    runs.run(4)
    assert runs.account().incarnation == 2
    restored = formula_agent(_fails_on(0))
    restored.restore(runs.state())
    assert restored.run(6).outcome is Outcome.DROPPED


def test_the_state_of_another_seed_is_refused_and_changes_nothing(formula_agent: Callable[..., Agent]) -> None:
    dropped = formula_agent(lambda images, now: images.sum() * float("nan"), seed=8)
    dropped.run(4)
    runs = formula_agent(_fails_on(), seed=3)
    before = runs.images
    with pytest.raises(ValueError, match="belongs to seed 8, not to seed 3"):
        runs.restore(dropped.state())
    assert runs.account().outcome is Outcome.RUNNING
    assert torch.equal(runs.images, before)


def test_the_candidate_as_it_stands(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(_fails_on())
    assert (runs.account().step, runs.account().outcome) == (0, Outcome.RUNNING)
    runs.run(10)
    assert (runs.account().step, runs.account().outcome) == (10, Outcome.FINISHED)


# Rounds that are made in parts.


def _bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        # Images of a seed that failed are not numbers, on both sides.
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.fixture
def failing_agent(smooth_target: Callable[..., Any]) -> Callable[..., Agent]:
    """A seed on a network, whose loss is not a number at some (incarnation, step)."""
    target, _ = smooth_target(dtype=torch.float32)

    def make(*fails: tuple[int, int]) -> Agent:
        runs = Agent(target, ObjectiveConfig(group_weight=0.1), _NOISY, seed=4)
        terms = runs._objective.terms

        def poisoned(*arguments: Any, **named: Any) -> dict[str, Tensor]:
            factor = float("nan") if (runs._inverter.incarnation, runs._inverter.step) in fails else 1.0
            return {name: factor * value for name, value in terms(*arguments, **named).items()}

        runs._objective.terms = poisoned  # type: ignore[method-assign]
        return runs

    return make


_NOISY = AgentsConfig(iterations=24, warmup=3, noise=0.1, restarts=2)


def _counts(calls: int) -> Callable[[], bool]:
    """False so many times, then True."""
    left = iter([False] * calls)
    return lambda: next(left, True)


_FAILURES = {
    "smooth": (),
    "restarts": ((0, 13),),
    "restarts twice": ((0, 13), (1, 10)),
    "dropped": ((0, 13), (1, 10), (2, 15)),
}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same process", "another process"])
@pytest.mark.parametrize("after", [0, 1, 5, 6, 7, 9])
@pytest.mark.parametrize("fails", _FAILURES.values(), ids=_FAILURES)
def test_an_interrupted_round_is_the_whole_round(
    failing_agent: Callable[..., Agent], fails: tuple[tuple[int, int], ...], after: int, elsewhere: bool
) -> None:
    consensus = torch.randn(2, 1, 5, 5)
    whole, parts = failing_agent(*fails), failing_agent(*fails)
    whole.run(8)
    last = whole.run(16, consensus)
    parts.run(8)
    failures = parts.run(16, consensus, _counts(after)).failures
    if elsewhere:
        state, parts = parts.state(), failing_agent(*fails)
        parts.restore(state)
    rest = parts.run(16, consensus)
    _bits(parts.state(), whole.state())
    assert (rest.outcome, rest.step, rest.incarnation) == (last.outcome, last.step, last.incarnation)
    assert (*failures, *rest.failures) == last.failures
    _bits({"images": parts.images}, {"images": whole.images})
    _bits({"images": _after(parts, 24, consensus)}, {"images": _after(whole, 24, consensus)})


def test_so_is_a_round_in_single_steps(failing_agent: Callable[..., Agent]) -> None:
    whole, steps = failing_agent((0, 13)), failing_agent((0, 13))
    consensus = torch.randn(2, 1, 5, 5)
    for until in (8, 16):
        whole.run(until, consensus)
        while steps.step < until:
            steps.run(until, consensus, _counts(1))
    assert whole.account().incarnation == 1
    _bits(steps.state(), whole.state())


def test_it_stands_where_it_was_interrupted(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(_fails_on())
    account = runs.run(8, None, _counts(3))
    assert (account.step, account.outcome, runs.step, runs.finished) == (3, Outcome.RUNNING, 3, False)
    assert runs.run(8, None, lambda: True).step == 3
    assert runs.run(8).step == 8
    assert runs.run(10).outcome is Outcome.FINISHED
    assert runs.finished


# Joining late.


def test_a_seed_that_joins_begins_near_what_the_others_have_found(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(_fails_on())
    runs.run(4)
    start = torch.full(_SHAPE, 5.0)
    runs.join(6, start)
    assert runs.step == 6
    distance = (runs.images - start).abs().mean()
    assert 0 < float(distance) < 2 * _CONFIG.learning_rate
    assert runs.run(10).outcome is Outcome.FINISHED


def test_its_noise_is_its_own(formula_agent: Callable[..., Agent]) -> None:
    start, found = torch.zeros(_SHAPE), []
    for seed in (3, 4):
        runs = formula_agent(_fails_on(), seed=seed)
        runs.join(4, start)
        found.append(runs.images)
    assert not torch.equal(*found)


@pytest.mark.parametrize("start", [None, torch.full(_SHAPE, 0.5)], ids=["noise", "consensus"])
def test_what_it_did_before_plays_no_part(formula_agent: Callable[..., Agent], start: Tensor | None) -> None:
    def descends() -> Agent:
        return formula_agent(lambda images, now: images.square().sum())

    used, fresh = descends(), descends()
    used.run(9)
    for runs in (used, fresh):
        runs.join(2, start)
    _bits(used.state(), fresh.state())
    _bits({"images": _after(used, 10)}, {"images": _after(fresh, 10)})


def test_to_join_at_the_beginning_is_to_begin(formula_agent: Callable[..., Agent]) -> None:
    joined, began = formula_agent(_fails_on()), formula_agent(_fails_on())
    joined.join(0, None)
    _bits(joined.state(), began.state())


def test_a_dropped_seed_may_join_again_with_all_its_restarts(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(_fails_on(0, 1, 2, 5))
    assert runs.run(4).outcome is Outcome.DROPPED
    runs.join(4, torch.zeros(_SHAPE))
    assert runs.account().outcome is Outcome.RUNNING
    account = runs.run(8)
    assert (account.outcome, account.incarnation) == (Outcome.RUNNING, 1)


def test_a_seed_that_fails_in_its_first_round_starts_again_where_it_joined(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(_fails_on(1))
    runs.run(1)
    runs.join(4, torch.zeros(_SHAPE))
    account = runs.run(5)
    assert (account.incarnation, account.step) == (1, 5)


def test_images_of_another_shape_are_no_place_to_begin(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(_fails_on())
    with pytest.raises(ValueError, match=r"the start has shape \(1, 1, 4, 4\), but \(2, 1, 4, 4\) is wanted"):
        runs.join(4, torch.zeros(1, 1, 4, 4))


# States that do not fit.


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images", lambda images: images[:1], r"images has shape \(1, 1, 4, 4\)"),
        ("images", lambda images: images.mean(), r"images has shape \(\)"),
        ("first_moment", lambda moment: moment[..., :1], "first_moment has shape"),
        ("second_moment", lambda moment: moment[None], "second_moment has shape"),
        ("generator", lambda state: state[:8], "generator has shape"),
        ("losses", None, "no state of a seed: it has no losses"),
        ("round", None, "no state of an agent: it has no round"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    formula_agent: Callable[..., Agent], name: str, change: Callable[[Tensor], Tensor] | None, message: str
) -> None:
    other = formula_agent(_fails_on())
    other.run(6)
    state = other.state()
    if change is None:
        del state[name]
    else:
        state[name] = change(state[name])
    runs = formula_agent(_fails_on())
    before = runs.state()
    with pytest.raises(ValueError, match=message):
        runs.restore(state)
    _bits(runs.state(), before)

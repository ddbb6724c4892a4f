"""One seed's descent: the same numbers on every run and after every pause, within the box, and failing in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradinversion.agents import AgentsConfig, Inverter, Objective, ObjectiveConfig, Outcome, learning_rate
from gradinversion.target import Start
from torch import Tensor

_STEPS = AgentsConfig(iterations=12, warmup=3, learning_rate=0.1)
_NOISY = AgentsConfig(iterations=12, warmup=3, learning_rate=0.1, noise=0.2, sign=False)


def _after(descends: Inverter, *run: Any) -> Tensor:
    """The images after a run."""
    descends.run(*run)
    return descends.images


def _objective(smooth_target: Callable[..., Any]) -> Objective:
    target, _ = smooth_target(dtype=torch.float32)
    return Objective(target, ObjectiveConfig())


def _same(one: dict[str, Tensor], other: dict[str, Tensor], but: tuple[str, ...] = ()) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one if name not in but)


@pytest.mark.parametrize("config", [_STEPS, _NOISY], ids=["sign", "noise"])
def test_the_same_seed_gives_the_same_bits(smooth_target: Callable[..., Any], config: AgentsConfig) -> None:
    objective = _objective(smooth_target)
    runs = [Inverter(objective, config, seed=5) for _ in range(2)]
    accounts = [run.run(10, None) for run in runs]
    assert torch.equal(runs[0].images, runs[1].images)
    assert accounts[0].losses == accounts[1].losses
    assert _same(runs[0].state(), runs[1].state())


def test_other_seeds_and_incarnations_give_other_images(smooth_target: Callable[..., Any]) -> None:
    objective = _objective(smooth_target)
    starts = [Inverter(objective, _STEPS, seed, incarnation) for seed, incarnation in ((0, 0), (1, 0), (0, 1), (7, 0))]
    for index, one in enumerate(starts):
        for other in starts[index + 1 :]:
            assert float((one.images - other.images).abs().mean()) > 0.5


def test_the_global_random_numbers_play_no_part(smooth_target: Callable[..., Any]) -> None:
    objective = _objective(smooth_target)
    first = _after(Inverter(objective, _NOISY, seed=5), 4, None)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    second = _after(Inverter(objective, _NOISY, seed=5), 4, None)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("config", [_STEPS, _NOISY], ids=["sign", "noise"])
@pytest.mark.parametrize("consensus_from", [None, 0, 5])
def test_a_pause_changes_nothing(
    smooth_target: Callable[..., Any], config: AgentsConfig, consensus_from: int | None
) -> None:
    objective = _objective(smooth_target)
    consensus = torch.randn(2, 1, 5, 5)

    def target(step: int) -> Tensor | None:
        return consensus if consensus_from is not None and step >= consensus_from else None

    whole = Inverter(objective, config, seed=5)
    whole.run(5, target(0))
    last = whole.run(10, target(5))

    if consensus_from != 5:  # the same target throughout: one go
        one_go = Inverter(objective, config, seed=5)
        assert torch.equal(_after(one_go, 10, target(0)), whole.images)
        assert _same(one_go.state(), whole.state())

    before = Inverter(objective, config, seed=5)
    before.run(5, target(0))
    state = before.state()
    before.run(7, target(5))  # must not reach into the state that was taken
    after = Inverter(objective, config, seed=5)
    after.restore(state)
    assert _same(after.state(), state)
    account = after.run(10, target(5))
    assert torch.equal(after.images, whole.images)
    assert account.losses == last.losses
    assert _same(after.state(), whole.state())


def test_restoring_an_early_state_into_one_that_has_run_on(smooth_target: Callable[..., Any]) -> None:
    objective = _objective(smooth_target)
    used = Inverter(objective, _NOISY, seed=5)
    beginning = used.state()
    first = _after(used, 6, None)
    used.restore(beginning)
    assert used.step == 0
    assert torch.equal(_after(used, 6, None), first)


def test_a_state_of_another_incarnation_is_taken_over_whole(smooth_target: Callable[..., Any]) -> None:
    objective = _objective(smooth_target)
    restarted = Inverter(objective, _NOISY, seed=5, incarnation=2, step=3)
    restarted.run(6, None)
    fresh = Inverter(objective, _NOISY, seed=5)
    fresh.restore(restarted.state())
    assert (fresh.incarnation, fresh.step) == (2, 6)
    assert torch.equal(_after(fresh, 12, None), _after(restarted, 12, None))


def test_the_state_of_another_seed_is_refused(smooth_target: Callable[..., Any]) -> None:
    objective = _objective(smooth_target)
    inverter, other = Inverter(objective, _STEPS, seed=5), Inverter(objective, _STEPS, seed=6)
    before = inverter.state()
    with pytest.raises(ValueError, match="belongs to seed 6, not to seed 5"):
        inverter.restore(other.state())
    assert _same(inverter.state(), before)


@pytest.mark.parametrize("seed", [0, 2**62, -1])
def test_seeds_of_any_size(smooth_target: Callable[..., Any], seed: int) -> None:
    inverter = Inverter(_objective(smooth_target), _STEPS, seed=seed)
    assert inverter.run(1, None).seed == seed
    assert bool(torch.isfinite(inverter.images).all())


@pytest.mark.parametrize("incarnation", [0, 1, 2])
def test_each_step_has_the_schedule_s_size(formula_objective: Callable[..., Any], incarnation: int) -> None:
    # The derivative of the sum is one everywhere, so Adam moves each pixel by exactly the learning rate.
    config = AgentsConfig(iterations=8, warmup=2, learning_rate=0.1, box=False, sign=False)
    inverter = Inverter(formula_objective(lambda images, call: images.sum()), config, seed=0, incarnation=incarnation)
    for step in range(8):
        before = inverter.images
        inverter.run(step + 1, None)
        moved = before - inverter.images
        rate = learning_rate(step, steps=8, warmup=2, peak=0.1 * 0.5**incarnation)
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-4, atol=1e-6)


def test_with_sign_the_size_of_the_derivative_plays_no_part(formula_objective: Callable[..., Any]) -> None:
    config = AgentsConfig(iterations=8, learning_rate=0.1, box=False, sign=True)
    runs = [Inverter(formula_objective(lambda x, call, c=c: c * x.square().sum()), config, 0) for c in (1e-6, 1e6)]
    assert torch.equal(_after(runs[0], 8, None), _after(runs[1], 8, None))


def test_noise_is_a_multiple_of_the_learning_rate(formula_objective: Callable[..., Any]) -> None:
    config = AgentsConfig(iterations=8, warmup=0, learning_rate=0.1, box=False, noise=0.5)
    still = formula_objective(lambda images, call: (0 * images).sum())
    inverter = Inverter(still, config, seed=0)
    before = inverter.images
    inverter.run(1, None)
    assert float((inverter.images - before).std()) == pytest.approx(0.05, rel=0.4)


def test_the_box_holds_after_every_step(formula_objective: Callable[..., Any]) -> None:
    config = AgentsConfig(iterations=6, warmup=0, learning_rate=10.0, noise=1.0, box=True)
    inverter = Inverter(formula_objective(lambda images, call: -images.square().sum()), config, seed=0)
    for step in range(1, 7):
        images = _after(inverter, step, None)
        assert -1.0 <= float(images.min()) <= float(images.max()) <= 1.0
    assert float(images.abs().max()) == 1.0  # it did push against the walls


def test_without_the_box_pixels_may_leave_it(formula_objective: Callable[..., Any]) -> None:
    config = AgentsConfig(iterations=6, warmup=0, learning_rate=10.0, box=False)
    images = _after(Inverter(formula_objective(lambda images, call: -images.square().sum()), config, 0), 6, None)
    assert float(images.abs().max()) > 5.0


def test_the_first_seed_begins_at_the_start_and_others_near_it(formula_objective: Callable[..., Any]) -> None:
    objective = formula_objective(lambda images, call: images.sum())
    error = torch.tensor([0.1, 0.5])
    objective.start = Start(torch.full((2, 1, 4, 4), 0.25), error, seed=3)
    config = AgentsConfig(iterations=4, warmup=0)
    assert torch.equal(Inverter(objective, config, 3).images, objective.start.images)
    others = [Inverter(objective, config, 4).images, Inverter(objective, config, 3, incarnation=1).images]
    for images in others:
        off = (images - objective.start.images).flatten(1).square().mean(dim=1).sqrt()
        assert bool((off > 0.4 * error).all())
        assert bool((off < 2 * error).all())
    assert not torch.equal(*others)


def test_a_seed_that_joins_near_the_others_does_not_go_back_to_the_start(formula_objective: Callable[..., Any]) -> None:
    objective = formula_objective(lambda images, call: images.sum())
    consensus = torch.full((2, 1, 4, 4), 0.75)
    before = Inverter(objective, AgentsConfig(iterations=4), 3, step=2, start=consensus).images
    objective.start = Start(torch.zeros(2, 1, 4, 4), torch.zeros(2), seed=3)
    assert torch.equal(Inverter(objective, AgentsConfig(iterations=4), 3, step=2, start=consensus).images, before)


def test_it_begins_near_a_given_start(formula_objective: Callable[..., Any]) -> None:
    start = torch.full((2, 1, 4, 4), 0.25)
    config = AgentsConfig(learning_rate=0.01)
    inverter = Inverter(formula_objective(lambda images, call: images.sum()), config, 0, start=start)
    distance = (inverter.images - start).abs()
    assert 0 < float(distance.mean()) < 0.02


def test_descending_brings_the_gradient_loss_down(smooth_target: Callable[..., Any]) -> None:
    target, _ = smooth_target(dtype=torch.float32)
    objective = Objective(target, ObjectiveConfig(total_variation_weight=0.01))
    account = Inverter(objective, AgentsConfig(iterations=80, warmup=5, learning_rate=0.1), seed=0).run(80, None)
    assert account.outcome is Outcome.FINISHED
    assert account.trace[-1]["gradient"] < 0.5 * account.trace[0]["gradient"]
    assert [row["step"] for row in account.trace] == [float(step) for step in range(1, 81)]
    assert account.losses == {name: value for name, value in account.trace[-1].items() if name != "step"}


def test_the_account_says_where_the_seed_stands(smooth_target: Callable[..., Any]) -> None:
    inverter = Inverter(_objective(smooth_target), _STEPS, seed=3)
    halfway = inverter.run(6, None)
    assert (halfway.seed, halfway.incarnation, halfway.step, halfway.outcome) == (3, 0, 6, Outcome.RUNNING)
    assert inverter.run(6, None).step == 6  # nothing left to do
    images = inverter.images
    kept = images.clone()
    assert inverter.run(12, None).outcome is Outcome.FINISHED
    assert torch.equal(images, kept)
    assert not torch.equal(images, inverter.images)


def _nan_at(call: int) -> Callable[[Tensor, int], Tensor]:
    return lambda images, now: images.square().sum() * (float("nan") if now == call else 1.0)


def test_a_loss_that_is_not_a_number_is_an_outcome(formula_objective: Callable[..., Any]) -> None:
    config = AgentsConfig(iterations=10, warmup=0)
    account = Inverter(formula_objective(_nan_at(3)), config, seed=0).run(10, None)
    assert account.outcome is Outcome.NOT_FINITE
    assert account.step == 4
    assert len(account.trace) == 3


@pytest.mark.parametrize("sign", [True, False])
def test_it_is_noticed_even_where_no_loss_was_recorded(formula_objective: Callable[..., Any], sign: bool) -> None:
    # Of 1,000 steps each fifth is recorded; the bad one is not among them.
    config = AgentsConfig(iterations=1000, warmup=0, sign=sign)
    account = Inverter(formula_objective(_nan_at(6)), config, seed=0).run(100, None)
    assert account.outcome is Outcome.NOT_FINITE
    assert account.step == 10


@pytest.mark.parametrize("sign", [True, False])
def test_so_is_a_derivative_that_is_not_a_number(formula_objective: Callable[..., Any], sign: bool) -> None:
    def value(images: Tensor, call: int) -> Tensor:
        broken = (0 * images[0, 0, 0, 0]).sqrt()  # 0, with the derivative 0 * infinity
        return images.square().sum() + (broken if call == 2 else 0)

    config = AgentsConfig(iterations=10, warmup=0, sign=sign)
    assert Inverter(formula_objective(value), config, seed=0).run(10, None).outcome is Outcome.NOT_FINITE


def test_a_loss_far_above_where_it_began_is_divergence(formula_objective: Callable[..., Any]) -> None:
    def rising(images: Tensor, call: int) -> Tensor:
        return (0 * images).sum() + (1.0 if call < 4 else 21.0)

    config = AgentsConfig(iterations=10, warmup=0)
    account = Inverter(formula_objective(rising), config, seed=0).run(10, None)
    assert (account.outcome, account.step) == (Outcome.DIVERGED, 5)


def test_a_loss_that_rises_less_is_not(formula_objective: Callable[..., Any]) -> None:
    def rising(images: Tensor, call: int) -> Tensor:
        return (0 * images).sum() + (1.0 if call < 4 else 19.0)

    config = AgentsConfig(iterations=10, warmup=0)
    assert Inverter(formula_objective(rising), config, seed=0).run(10, None).outcome is Outcome.FINISHED


def test_a_run_that_found_the_answer_is_not_divergence_when_noise_returns(
    formula_objective: Callable[..., Any],
) -> None:
    def value(images: Tensor, call: int) -> Tensor:
        return (0 * images).sum() + (1.0, 1e-6, 0.5, 0.5)[min(call, 3)]

    config = AgentsConfig(iterations=10, warmup=0)
    assert Inverter(formula_objective(value), config, seed=0).run(10, None).outcome is Outcome.FINISHED


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"iterations": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"warmup": -1},
        {"noise": -0.1},
        {"noise": float("inf")},
        {"restarts": -1},
        {"gpus": 1.5},
        {"gpus": -1.0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"agents\.{next(iter(wrong))}="):
        AgentsConfig(**wrong)

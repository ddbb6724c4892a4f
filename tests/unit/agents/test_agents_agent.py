"""An agent's rounds: restarts of a seed that fails, the end of its patience, and its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gradinversion.agents import Agent, AgentsConfig, Inverter, ObjectiveConfig, Outcome, agent, learning_rate
from torch import Tensor

_CONFIG = AgentsConfig(iterations=10, warmup=0, learning_rate=0.1, restarts=2, sign=False, box=False)
_STANDS_STILL = 0.0
_SHAPE = (2, 1, 4, 4)


@pytest.fixture
def formula_agent(
    monkeypatch: pytest.MonkeyPatch, formula_objective: Callable[..., Any]
) -> Iterator[Callable[..., Agent]]:
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
    candidate = runs.run(8, consensus)
    assert (candidate.outcome, candidate.incarnation, candidate.step) == (Outcome.RUNNING, 1, 8)
    # The objective is flat, so the candidate is where it started: the consensus and a little noise.
    assert 0 < float((candidate.images - consensus).abs().mean()) < 2 * _CONFIG.learning_rate
    assert len(candidate.messages) == 1
    assert "Seed 3 failed at step 7" in candidate.messages[0]
    assert "restart 1 of 2" in candidate.messages[0]


def test_without_a_consensus_it_starts_from_noise(formula_agent: Callable[..., Agent]) -> None:
    candidate = formula_agent(_fails_on(1)).run(4)
    assert candidate.incarnation == 1
    assert float(candidate.images.std()) == pytest.approx(1.0, abs=0.5)
    expected = Inverter(formula_agent(_fails_on())._objective, _CONFIG, seed=3, incarnation=1).images
    torch.testing.assert_close(candidate.images, expected)


def test_it_joins_the_round_with_half_the_learning_rate(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(_fails_on(4, slope=1.0))
    runs.run(4)
    consensus = torch.zeros(_SHAPE)
    moved = Inverter(runs._objective, _CONFIG, 3, incarnation=1, step=4, start=consensus).images
    candidate = runs.run(5, consensus)
    assert (candidate.incarnation, candidate.step) == (1, 5)
    rate = learning_rate(4, steps=10, warmup=0, peak=0.05)
    torch.testing.assert_close(moved - candidate.images, torch.full(_SHAPE, rate), rtol=1e-4, atol=1e-6)


def test_when_its_restarts_are_used_up_it_is_dropped(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(lambda images, now: images.sum() * float("nan"))
    candidate = runs.run(4)
    assert candidate.outcome is Outcome.DROPPED
    assert candidate.incarnation == 2
    assert [("restart" in message, "dropped" in message) for message in candidate.messages] == [
        (True, False),
        (True, False),
        (True, True),
    ]
    assert runs.step == _CONFIG.iterations
    again = runs.run(8)
    assert (again.outcome, again.messages) == (Outcome.DROPPED, ())


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
    candidate = Agent(target, ObjectiveConfig(total_variation_weight=1.0), config, seed=0).run(10)
    assert candidate.outcome is Outcome.DROPPED
    assert candidate.incarnation == 1
    assert len(candidate.messages) == 2


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
    candidate = after.run(10, consensus)
    assert candidate.outcome is Outcome.FINISHED
    assert torch.equal(candidate.images, last.images)
    assert candidate.losses == last.losses


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
    assert runs.candidate().incarnation == 2
    restored = formula_agent(_fails_on(0))
    restored.restore(runs.state())
    assert restored.run(6).outcome is Outcome.DROPPED


def test_the_state_of_another_seed_is_refused_and_changes_nothing(formula_agent: Callable[..., Agent]) -> None:
    dropped = formula_agent(lambda images, now: images.sum() * float("nan"), seed=8)
    dropped.run(4)
    runs = formula_agent(_fails_on(), seed=3)
    before = runs.candidate().images
    with pytest.raises(ValueError, match="belongs to seed 8, not to seed 3"):
        runs.restore(dropped.state())
    assert runs.candidate().outcome is Outcome.RUNNING
    assert torch.equal(runs.candidate().images, before)


def test_the_candidate_as_it_stands(formula_agent: Callable[..., Agent]) -> None:
    runs = formula_agent(_fails_on())
    assert (runs.candidate().step, runs.candidate().outcome) == (0, Outcome.RUNNING)
    runs.run(10)
    assert (runs.candidate().step, runs.candidate().outcome) == (10, Outcome.FINISHED)

"""Our L-BFGS against torch's, and its state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gradinversion.agents import Agent, AgentsConfig, ObjectiveConfig, Outcome
from gradinversion.agents.lbfgs import Lbfgs
from torch import Tensor


def _valley(x: Tensor) -> Tensor:
    """Rosenbrock's function in many dimensions, curved and badly scaled."""
    x = x.flatten()
    return (5 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


def _slope(x: Tensor) -> Tensor:
    at = x.detach().clone().requires_grad_()
    return torch.autograd.grad(_valley(at), at)[0]


def _start() -> Tensor:
    return 0.5 + 0.1 * torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_equals_torch_optim(rate: float) -> None:
    ours = _start()
    theirs = ours.clone().requires_grad_()
    lbfgs = Lbfgs(ours)
    options: dict[str, Any] = {"max_iter": 1, "history_size": 20, "tolerance_grad": 0, "tolerance_change": 0}
    reference = torch.optim.LBFGS([theirs], lr=rate, **options)

    def closure() -> Tensor:
        reference.zero_grad()
        value = _valley(theirs)
        value.backward()
        return value

    for _ in range(40):
        lbfgs.step(ours, _slope(ours), rate)
        reference.step(closure)
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-8)
    assert float(_valley(ours)) < 1e-6 * float(_valley(_start()))


def test_a_restored_optimiser_goes_on_bit_for_bit() -> None:
    whole = _start()
    optimiser = Lbfgs(whole)
    for _ in range(25):  # more than it remembers
        optimiser.step(whole, _slope(whole), 0.5)
    state, half = optimiser.state(), whole.clone()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    other = Lbfgs(half)
    other.require_fit(state)
    other.restore(state, optimiser.steps)
    for _ in range(5):
        optimiser.step(whole, _slope(whole), 0.5)
        other.step(half, _slope(half), 0.5)
    assert torch.equal(whole, half)
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_a_flat_place_and_a_constant_slope_are_no_division_by_zero() -> None:
    x = _start()
    optimiser = Lbfgs(x)
    for slope in (torch.zeros_like(x), torch.ones_like(x), torch.ones_like(x), torch.zeros_like(x)):
        optimiser.step(x, slope, 1.0)
    assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize(
    ("name", "shape"),
    [("moves", (3, 5)), ("moves", (21, 24)), ("changes", (1, 24)), ("derivative", (3,)), ("move", ())],
)
def test_a_state_of_other_variables_is_refused(name: str, shape: tuple[int, ...]) -> None:
    x = _start()
    optimiser = Lbfgs(x)
    for _ in range(3):
        optimiser.step(x, _slope(x), 0.5)
    state = optimiser.state() | {name: torch.zeros(shape, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"this state's \w+ has shape"):
        optimiser.require_fit(state)


def test_an_agent_descends_with_it_and_goes_on_bit_for_bit(smooth_target: object) -> None:
    target, _ = smooth_target(dtype=torch.float32)  # type: ignore[operator]
    config = AgentsConfig(iterations=60, learning_rate=1.0, optimiser="lbfgs", sign=False, box=False)  # type: ignore[arg-type]
    objective = ObjectiveConfig(gradient_loss="squared_l2", total_variation_weight=0.0)  # type: ignore[arg-type]
    whole, before, after = (Agent(target, objective, config, seed=4) for _ in range(3))
    whole.run(25)
    last = whole.run(60)
    before.run(25)
    after.restore(before.state())
    account = after.run(60)
    assert account.outcome is Outcome.FINISHED
    assert torch.equal(after.images, whole.images)
    assert last.trace[-1]["gradient"] < 0.05 * Agent(target, objective, config, seed=4).run(1).trace[0]["gradient"]


@pytest.mark.parametrize("wrong", [{"sign": True}, {"box": True}, {"noise": 0.1}])
def test_what_it_cannot_be_combined_with_is_said(wrong: dict[str, bool]) -> None:
    settings = {"sign": False, "box": False} | wrong
    with pytest.raises(ValueError, match=r"agents\.sign=false agents\.box=false agents\.noise=0"):
        AgentsConfig(optimiser="lbfgs", **settings)  # type: ignore[arg-type]


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ValueError, match=r"agents\.optimiser=sgd: give one of adam, lbfgs"):
        AgentsConfig(optimiser="sgd")  # type: ignore[arg-type]

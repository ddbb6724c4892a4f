"""Gauss-Newton steps: they solve what is linear, stop for units that change, go on after a pause, and end a descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.agents import Agent, AgentsConfig, Inverter, Objective, ObjectiveConfig
from gradinversion.agents.gauss_newton import GaussNewton
from gradinversion.agents.gauss_newton_state import STATE_NAMES, GaussNewtonState
from gradinversion.agents.schedule import descent_steps
from gradinversion.capture import capture_gradient, load_images
from gradinversion.capture.models import convnet
from gradinversion.peeling import peel
from gradinversion.target import Target
from torch import Tensor

_SIZE = 30


def _after(descends: Agent | Inverter, *run: Any) -> Tensor:
    """The images after a run."""
    descends.run(*run)
    return descends.images


def _anywhere(variables: Tensor) -> None:
    """No bounds."""


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _start() -> Tensor:
    return _random(_SIZE, seed=1) + 0.5 * _random(_SIZE, seed=5)


def _linear(rows: int = 50) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A residual and its root."""
    matrix, root = _random(rows, _SIZE), _random(_SIZE, seed=1)
    return (lambda x: matrix @ (x - root)), root


def _kinked(x: Tensor) -> Tensor:
    """Two layers with a ReLU, as far from their values at the root."""
    first, second, root = _random(90, _SIZE, seed=2), _random(60, 90, seed=3), _random(_SIZE, seed=1)
    there, here = (second @ (first @ z).clamp_min(0) for z in (root, x))
    return (here - there) / there.norm()


def _within(bound: float) -> Callable[[Tensor], None]:
    def confine(variables: Tensor) -> None:
        variables.clamp_(-bound, bound)

    return confine


def _run(
    residual: Callable[[Tensor], Tensor], steps: int, confine: Callable[[Tensor], None] = _anywhere
) -> tuple[Tensor, GaussNewton]:
    variables = _start()
    confine(variables)
    finish = GaussNewton(residual, confine, variables)
    for step in range(steps):
        finish.step(variables, last=step == steps - 1)
    return variables, finish


def test_a_linear_residual_is_solved_to_rounding() -> None:
    residual, root = _linear()
    found, finish = _run(residual, 60)
    assert torch.allclose(found, root, atol=1e-6)
    assert finish.ended


def test_without_a_root_it_ends_at_the_least_squares() -> None:
    matrix, given = _random(50, _SIZE), _random(50, seed=4)
    found, _ = _run(lambda x: matrix @ x - given, 80)
    assert torch.allclose(found, torch.linalg.lstsq(matrix, given[:, None]).solution[:, 0], atol=1e-5)


def test_units_that_open_and_shut_are_found() -> None:
    found, finish = _run(_kinked, 1500)  # how many it takes depends on the machine's rounding: 350 to 600 were seen
    assert finish.ended
    assert torch.allclose(found, _random(_SIZE, seed=1), atol=1e-4)


def test_no_move_makes_it_worse() -> None:
    variables = _start()
    finish = GaussNewton(_kinked, _anywhere, variables)
    seen = []
    for _ in range(200):
        finish.step(variables, last=False)
        seen.append(float(_kinked(variables).norm()))
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 0.05 * seen[0]


def test_the_last_step_makes_the_move() -> None:
    residual, _ = _linear()
    variables = _start()
    finish = GaussNewton(residual, _anywhere, variables)
    finish.step(variables, last=False)
    assert torch.equal(variables, _start())
    finish.step(variables, last=True)
    assert float(residual(variables).norm()) < float(residual(_start()).norm())


def test_bounds_are_kept() -> None:
    residual, root = _linear()
    half = float(root.abs().median())
    found, _ = _run(residual, 60, confine=_within(half))
    assert float(found.abs().max()) <= half
    assert float(residual(found).norm()) < float(residual(_start().clamp(-half, half)).norm())


@pytest.mark.parametrize("pause", [1, 5, 12, 13, 40])
def test_a_pause_changes_no_bit(pause: int) -> None:
    variables = _start()
    finish = GaussNewton(_kinked, _anywhere, variables)
    for _ in range(pause):
        finish.step(variables, last=False)
    state, copied = finish.state(), variables.clone()
    other = GaussNewton(_kinked, _anywhere, copied, GaussNewtonState.read(state, copied))
    for step in range(30):
        finish.step(variables, last=step == 29)
        other.step(copied, last=step == 29)
    assert torch.equal(variables, copied)
    assert all(torch.equal(finish.state()[name], other.state()[name]) for name in STATE_NAMES)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_it_gives_up_on_a_residual_that_is_no_number(broken: float) -> None:
    variables = torch.ones(_SIZE, dtype=torch.float64)
    finish = GaussNewton(lambda x: x * broken, _anywhere, variables)
    for _ in range(20):
        finish.step(variables, last=False)
    assert finish.ended
    assert torch.equal(variables, torch.ones(_SIZE, dtype=torch.float64))


def test_it_stops_where_nothing_helps() -> None:
    calls = []

    def constant(x: Tensor) -> Tensor:
        calls.append(1)
        return torch.cat([torch.ones(3, dtype=torch.float64), 0 * x])

    variables = torch.ones(_SIZE, dtype=torch.float64)
    finish = GaussNewton(constant, _anywhere, variables)
    for _ in range(100):
        finish.step(variables, last=False)
    assert finish.ended
    assert torch.equal(variables, torch.ones(_SIZE, dtype=torch.float64))
    assert len(calls) < 60


@pytest.mark.parametrize(
    ("iterations", "finish", "steps"),
    [
        (1000, 0.7, 300),
        (1000, 0.0, 1000),
        (4000, 0.7, 1200),
        (400, 0.7, 250),
        (349, 0.7, 349),
        (350, 0.7, 250),
        (1, 0.9, 1),
    ],
)
def test_short_runs_descend_for_longer(iterations: int, finish: float, steps: int) -> None:
    assert descent_steps(iterations, finish) == steps


@pytest.mark.parametrize("finish", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(finish: float) -> None:
    with pytest.raises(ValueError, match=r"agents\.finish=.*give a share"):
        AgentsConfig(finish=finish)


@pytest.fixture(scope="module")
def anchored() -> tuple[Target, Tensor]:
    """Four images on ConvNet-32, peeled to the second ReLU, and the images, normalised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = convnet().eval()
    images, labels = load_images("photos", 4, 32)[0], torch.arange(4)
    update = capture_gradient(model, images, labels)
    anchor = peel(update, model, labels).anchor
    assert anchor is not None
    return Target(update, model, labels, anchor), update.normalisation.apply(images)


def test_the_residual_is_zero_at_the_private_images(anchored: tuple[Target, Tensor]) -> None:
    target, truth = anchored
    objective = Objective(target, ObjectiveConfig())
    assert objective.determined
    assert float(objective.residual(truth).norm().detach()) < 1e-5
    away = objective.residual(truth + 0.1)
    assert target.anchor is not None
    smooth = sum(g.numel() for n, g in target.update.gradients.items() if n in target.anchor.continuous)
    assert len(away) == target.anchor.activations.numel() + smooth >= truth.numel()
    assert float(away.norm().detach()) > 0.01


def _error(target: Target, truth: Tensor, config: AgentsConfig) -> float:
    inverter = Inverter(Objective(target, ObjectiveConfig()), config, seed=0)
    assert inverter.run(config.iterations, None).step == config.iterations
    return float((inverter.images - truth).square().mean().sqrt())


def test_the_finish_finds_the_images_to_rounding(anchored: tuple[Target, Tensor]) -> None:
    config = AgentsConfig(iterations=500)
    finished, descended = (_error(*anchored, replace(config, finish=share)) for share in (0.7, 0.0))
    assert finished < 0.2 * descended
    assert finished < 1e-3


@pytest.mark.parametrize("doubt", ["no anchor", "error", "equations"])
def test_where_something_is_left_open_there_is_none(anchored: tuple[Target, Tensor], doubt: str) -> None:
    target, _ = anchored
    assert target.anchor is not None
    anchors = {
        "no anchor": None,
        "error": replace(target.anchor, error=0.02),
        "equations": replace(target.anchor, continuous=()),
    }
    target = replace(target, anchor=anchors[doubt])
    found = []
    for share in (0.7, 0.0):
        inverter = Inverter(Objective(target, ObjectiveConfig()), AgentsConfig(iterations=360, finish=share), seed=0)
        found.append(_after(inverter, 12, None))
        assert "finish_move" not in inverter.state()
    assert torch.equal(*found)


@pytest.mark.parametrize("pause", [247, 250, 252, 265])
def test_a_seed_goes_on_from_its_checkpoint(anchored: tuple[Target, Tensor], pause: int) -> None:
    target, truth = anchored
    config, objective = AgentsConfig(iterations=350), ObjectiveConfig()
    straight, paused, fresh = (Agent(target, objective, config, seed=3) for _ in range(3))
    for agent in (straight, paused):
        agent.join(245, truth)  # as one that was lost: the descent before costs a test only time
        agent.run(pause, truth)
    fresh.restore(paused.state())
    assert torch.equal(_after(straight, 280, truth), _after(fresh, 280, truth))
    assert straight.state().keys() == fresh.state().keys()


def test_a_seed_that_joins_at_the_end_begins_there(anchored: tuple[Target, Tensor]) -> None:
    target, truth = anchored
    agent = Agent(target, ObjectiveConfig(), AgentsConfig(iterations=1000), seed=1)
    agent.join(900, truth)
    before = float((agent.images - truth).norm())
    found = agent.run(1000, truth)
    assert found.step == 1000
    assert float((agent.images - truth).norm()) < 0.5 * before


def _contradictory(x: Tensor) -> Tensor:
    """Far more equations than unknowns, which nothing meets."""
    return _random(90, _SIZE, seed=2) @ x - 100 * _random(90, seed=6)


def test_equations_that_contradict_each_other_are_seen() -> None:
    _, finish = _run(_contradictory, 20)
    assert not finish.stalled
    _, finish = _run(_contradictory, 200)
    assert finish.stalled


@pytest.mark.parametrize("residual", [_linear()[0], _kinked])
def test_what_is_solved_has_not_stalled(residual: Callable[[Tensor], Tensor]) -> None:
    assert not _run(residual, 400)[1].stalled


@pytest.fixture(scope="module")
def wrong(anchored: tuple[Target, Tensor]) -> Target:
    """As `anchored`, but what was recovered is off by more than its estimated error."""
    target, _ = anchored
    assert target.anchor is not None
    noise = torch.randn(target.anchor.activations.shape, generator=torch.Generator().manual_seed(7))
    activations = target.anchor.activations * (1 + 0.3 * noise)
    return replace(target, anchor=replace(target.anchor, activations=activations))


_LONG = AgentsConfig(iterations=600)


@pytest.fixture(scope="module")
def second(wrong: Target) -> Agent:
    """In its second descent."""
    agent = Agent(wrong, ObjectiveConfig(), _LONG, seed=0)
    agent.run(420, None)
    return agent


def test_a_finish_that_stalls_gives_way_to_a_second_descent(
    wrong: Target, second: Agent, anchored: tuple[Target, Tensor]
) -> None:
    state = second.state()
    assert 300 < int(state["again"]) < 420
    assert "finish_move" not in state
    again, plain = Agent(wrong, ObjectiveConfig(), _LONG, seed=0), replace(_LONG, finish=0.0)
    again.restore(state)
    ends = [_after(again, 600, None), _after(Inverter(Objective(wrong, ObjectiveConfig()), plain, seed=0), 600, None)]
    errors = [float((end - anchored[1]).norm()) for end in ends]
    assert errors[0] < 1.25 * errors[1]


def test_a_second_descent_goes_on_from_its_checkpoint(wrong: Target, second: Agent) -> None:
    fresh = Agent(wrong, ObjectiveConfig(), _LONG, seed=0)
    state = second.state()
    fresh.restore(state)
    assert torch.equal(_after(second, 430, None), _after(fresh, 430, None))
    assert torch.equal(second.state()["again"], fresh.state()["again"])
    for again in (torch.tensor([0]), torch.tensor([600]), torch.tensor([1, 2])):
        with pytest.raises(ValueError, match=r"again|second descent begins"):
            fresh.restore(state | {"again": again})


def test_a_first_descent_is_taken_over_from_a_second(wrong: Target, second: Agent) -> None:
    agent = Agent(wrong, ObjectiveConfig(), _LONG, seed=0)
    beginning, first = agent.state(), _after(agent, 3, None)
    agent.restore(second.state())
    agent.restore(beginning)
    assert torch.equal(_after(agent, 3, None), first)


def test_losses_are_told_as_before(anchored: tuple[Target, Tensor]) -> None:
    target, truth = anchored
    found = Inverter(Objective(target, ObjectiveConfig()), AgentsConfig(iterations=350), seed=0, step=249).run(
        280, truth
    )
    assert {row["step"] for row in found.trace} == {float(step) for step in range(250, 281)}
    assert found.losses.keys() == {"gradient", "activation", "total_variation", "group", "total"}


@pytest.mark.parametrize("weight", ["gradient_weight", "activation_weight"])
def test_a_term_without_weight_has_no_say_at_the_end(anchored: tuple[Target, Tensor], weight: str) -> None:
    # A control without the gradient must not see it, also where a target with an anchor is handed to it.
    without: dict[str, Any] = {weight: 0.0}
    objective = Objective(anchored[0], ObjectiveConfig(**without))
    assert not objective.determined


def test_units_that_are_shut_are_no_equations(anchored: tuple[Target, Tensor]) -> None:
    target, _ = anchored
    assert target.anchor is not None
    activations = target.anchor.activations.clone()
    activations[:, 1:] = 0
    # Enough entries, but hardly any of them says more than that a unit was not open.
    few = replace(target.anchor, activations=activations, continuous=("4.weight",))
    many = replace(few, activations=activations.repeat(1, 8, 1, 1))
    assert many.activations.numel() > 4 * 3 * 32 * 32
    assert not Objective(replace(target, anchor=many), ObjectiveConfig()).determined


def test_variables_at_their_bounds_do_not_cut_the_move_off() -> None:
    matrix = _random(50, _SIZE)
    root = _random(_SIZE, seed=1)
    bound = float(root.abs().quantile(0.5))
    inside = root.clamp(-bound, bound)  # half of the variables lie on a bound, and the residual pushes them outwards
    given = matrix @ inside + matrix @ torch.linalg.solve(matrix.T @ matrix, 0.1 * (root - inside).sign())
    found, _ = _run(lambda x: matrix @ x - given, 300, confine=_within(bound))
    assert torch.allclose(found, inside, atol=1e-6)


def test_a_state_that_is_refused_changes_nothing(anchored: tuple[Target, Tensor]) -> None:
    target, truth = anchored
    agent, other = (Agent(target, ObjectiveConfig(), AgentsConfig(iterations=350), seed=0) for _ in range(2))
    agent.join(260, truth)
    agent.run(263, None)
    state, before = agent.state(), other.state()
    broken = [
        {name: tensor for name, tensor in state.items() if name != "finish_left"},
        state | {"finish_counters": torch.full((11,), float("nan"), dtype=torch.float64)},
        state | {"finish_counters": state["finish_counters"].to(torch.complex128)},
    ]
    for one in broken:
        with pytest.raises(ValueError, match="finish_"):
            other.restore(one)
    after = other.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("iterations", "said"), [(1000, ["from step 300 of 1000 on"]), (300, [])])
def test_the_agent_says_that_there_is_an_end(anchored: tuple[Target, Tensor], iterations: int, said: list[str]) -> None:
    agent = Agent(anchored[0], ObjectiveConfig(), AgentsConfig(iterations=iterations), seed=0)
    found = [text for text in agent.messages if "agents.finish" in text]
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True))

"""An input before batch statistics by gradients and known outputs together: derivative, solver, and rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode
from gradinversion.peeling.kinds import Convolution
from gradinversion.peeling.rules.statistics_equations import Reader
from gradinversion.peeling.rules.statistics_joint import solve_together, step_operations
from gradinversion.peeling.rules.statistics_joint_error import apart, solved_again, told_entries
from gradinversion.peeling.rules.statistics_joint_input import RULE
from gradinversion.peeling.rules.statistics_levels import all_seen, levelled, levels_unseen
from gradinversion.peeling.rules.statistics_near import NearInput
from torch import Tensor

Cases = Callable[..., Any]
EPS, IMAGES, INPUTS, SIZE = 1e-5, 3, 6, 8


def _reader(values: Tensor, outputs: int, kernel: int, generator: torch.Generator, rank: int | None = None) -> Reader:
    """What a stride-2 convolution and a batch norm behind it are told, with the derivative of a random loss."""
    weight = torch.randn(outputs, INPUTS, kernel, kernel, generator=generator, dtype=torch.float64)
    if rank is not None:
        shapes = (outputs, rank), (rank, weight[0].numel())
        left, right = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        weight = (left @ right).reshape(weight.shape)
    kind = Convolution((kernel, kernel), (2, 2), (kernel // 2, kernel // 2), (1, 1), 1)
    free = weight.clone().requires_grad_()
    output = F.conv2d(values, free, None, 2, kernel // 2)
    entering = F.batch_norm(output, None, None, training=True, eps=EPS)
    is_open = entering.detach() > 0
    derivative = torch.randn(entering.shape, generator=generator, dtype=torch.float64) * is_open
    (gradient,) = torch.autograd.grad(entering, free, derivative)
    told = entering.detach() * is_open
    return Reader(
        kind=kind,
        weight=weight,
        eps=EPS,
        gradient=gradient,
        rounding=1e-9,
        derivative=derivative,
        shift_sum=derivative.sum(dim=(0, 2, 3)),
        scaled_sum=(derivative * entering.detach()).sum(dim=(0, 2, 3)),
        told=told,
        spread=torch.zeros_like(told),
        is_told=is_open,
        adds_up=torch.ones(outputs, dtype=torch.bool),
    )


@pytest.fixture
def values() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(IMAGES, INPUTS, SIZE, SIZE, generator=generator, dtype=torch.float64).clamp_min(0)


def test_the_true_input_misses_nothing(values: Tensor) -> None:
    reader = _reader(values, 5, 3, torch.Generator().manual_seed(2))
    gradients, outputs = NearInput(reader, reader.adds_up, values).left()
    assert float(gradients.norm()) < 1e-9
    assert float(outputs.norm()) < 1e-9


def test_moves_change_what_is_missed_by_their_derivative(values: Tensor) -> None:
    generator = torch.Generator().manual_seed(3)
    reader = _reader(values, 5, 3, generator)
    elsewhere = values + 0.3 * torch.randn(values.shape, generator=generator, dtype=torch.float64)
    move, small = torch.randn(values.shape, generator=generator, dtype=torch.float64), 1e-5
    near = NearInput(reader, reader.adds_up, elsewhere)
    sides = [NearInput(reader, reader.adds_up, elsewhere + sign * small * move) for sign in (1, -1)]
    above, below = ([one.left()[0] * one.length, one.left()[1]] for one in sides)
    gradients, outputs = near.forth(move)
    torch.testing.assert_close(gradients * near.length, (above[0] - below[0]) / (2 * small), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(outputs, (above[1] - below[1]) / (2 * small), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("begun", [False, True])
def test_back_is_the_transpose_of_forth(values: Tensor, begun: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    reader = _reader(values, 5, 3, generator)
    heard = torch.tensor([True, True, False, True, True])
    near = NearInput(reader, heard, values + 0.1 if begun else None)
    move = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    forth = near.forth(move)
    gradients, outputs = (torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in forth)
    pair = gradients, outputs
    ours = sum(float((one * other).sum()) for one, other in zip(forth, pair, strict=True))
    assert float((near.back(pair, (SIZE, SIZE)) * move).sum()) == pytest.approx(ours, rel=1e-9)


def test_gradients_and_outputs_together_give_the_input_up_to_its_scale(values: Tensor) -> None:
    generator = torch.Generator().manual_seed(5)
    readers = [_reader(values, 40, 3, generator), _reader(values, 40, 1, generator)]
    # One class of even and odd places has 48 unknowns for 40 + 40 equations, two have more than equations.
    found = solve_together(readers, [one.adds_up for one in readers], tuple(values.shape))
    assert found.misfit < 1e-5
    # A constant on even places is in no equation.
    ours, true = (
        one - one[:, :, ::2, ::2].amin(dim=(0, 2, 3), keepdim=True) * _even() for one in (found.values, values)
    )
    factor = (ours * true).sum() / ours.square().sum()
    assert float((factor * ours - true).norm() / true.norm()) < 1e-3


def _even() -> Tensor:
    grid = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    grid[::2, ::2] = 1
    return grid


def test_as_many_places_as_gradients_follow_with_outputs(residual_case: Cases, residual_network: Cases) -> None:
    case = residual_case(4, 0, residual_network(0, normed_skips=True), BatchNormMode.TRAIN_PRIVATE)
    found = case.derived()
    step = next(step for step in found.steps if step.rule == RULE)
    # Even places of even rows are 64, and two convolutions of 32 channels see them once each.
    assert step.checks["places"] == 4 * 64
    true = max(case.errors(step.value, found.knowledge.activations[step.value].values))
    assert true < 1e-3
    assert true < 10 * max(step.error)


@pytest.mark.parametrize(("rank", "kernels"), [(2, (3, 1)), (4, (3,))])
def test_what_equations_of_too_low_a_rank_leave_open_counts_as_an_error(
    values: Tensor, rank: int, kernels: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(6)
    readers = [_reader(values, 18, kernel, generator, rank) for kernel in kernels]
    heard = [one.adds_up for one in readers]
    # Entries are enough, and an input that is another meets all of them.
    assert told_entries(readers, heard) > 1.1 * values.numel()
    found = solve_together(readers, heard, tuple(values.shape))
    assert found.misfit < 1e-2
    levels = levels_unseen(readers, (SIZE, SIZE))
    ours = levelled(found.values, levels)[0]
    ours = ours * ((ours * values).sum() / ours.square().sum())
    true = float((ours - values).norm() / values.norm())
    assert true > 0.1
    other = solved_again(readers, heard, found)
    stated = float(apart(ours, other, levels).norm() / values.norm())
    assert stated > 0.03  # more than any tolerance
    assert true < 10 * stated


def test_places_that_no_convolution_sees_are_no_solution(values: Tensor) -> None:
    reader = _reader(values, 5, 1, torch.Generator().manual_seed(7))
    # A 1x1 convolution with a stride of two sees even places alone.
    assert not all_seen([reader], (SIZE, SIZE))
    assert all_seen([reader, _reader(values, 5, 3, torch.Generator().manual_seed(7))], (SIZE, SIZE))
    assert bool(solve_together([reader], [reader.adds_up], tuple(values.shape)).values.isfinite().all())


def test_a_step_costs_what_its_preconditioner_does(values: Tensor) -> None:
    reader = _reader(values, 5, 3, torch.Generator().manual_seed(8))
    places = IMAGES * SIZE**2
    # One matrix of a quarter of the places for each class, inverted.
    assert step_operations([reader], INPUTS, places) > 4 * (places / 4) ** 3

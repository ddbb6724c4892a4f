"""Equations that each count by how well their right side is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradinversion.peeling.geometry import Geometry
from gradinversion.peeling.kinds import Convolution
from gradinversion.peeling.rules import equations, weighted_equations
from gradinversion.peeling.rules.equations import Solution, gradient_equations, solve
from gradinversion.peeling.rules.weighted_equations import solve_weighted
from torch import Tensor
from torch.nn.grad import conv2d_weight

INPUTS, OUTPUTS, SIDE, NOISE = 16, 32, 4, 1e-4


def _solved(seed: int, spoilt: list[int], *, weighed: bool, off: float = 0.0) -> tuple[Solution, Tensor]:
    """Of a convolution of two images whose gradient is off as weights around zero are when rounded.

    `off`: what the derivatives themselves are off by.
    """
    random = torch.Generator().manual_seed(seed)
    entering = torch.randn(2, INPUTS, SIDE, SIDE, generator=random, dtype=torch.float64)
    cotangent = torch.randn(2, OUTPUTS, SIDE, SIDE, generator=random, dtype=torch.float64)
    kind = Convolution((3, 3), (1, 1), (1, 1), (1, 1), 1)
    shape = (OUTPUTS, INPUTS, 3, 3)
    gradient = conv2d_weight(entering, shape, cotangent, **Geometry.keywords.fget(kind))  # type: ignore[attr-defined]
    spread = torch.randn(shape, generator=random, dtype=torch.float64).abs().clamp_min(1e-3)
    deviation = NOISE * float(gradient.square().mean().sqrt()) * spread
    gradient = gradient + deviation * torch.randn(shape, generator=random, dtype=torch.float64)
    believed = cotangent + off * torch.randn(cotangent.shape, generator=random, dtype=torch.float64)
    for channel in spoilt:
        believed[0, channel].view(-1)[int(believed[0, channel].abs().argmax())] = 0
    own = deviation if weighed else None
    found = solve([gradient_equations(kind, (SIDE, SIDE), gradient, believed, own)])
    assert found is not None
    return found, entering.permute(0, 2, 3, 1).reshape(-1, INPUTS)


def _relative(found: Solution, true: Tensor) -> float:
    return float((found.values - true).norm() / true.norm())


@pytest.mark.parametrize("spoilt", [[], [3], [0, 7, 23]])
def test_a_solution_by_what_is_known_best_is_better_and_says_how_good_it_is(spoilt: list[int]) -> None:
    alike, true = _solved(0, spoilt, weighed=False)
    weighed, _ = _solved(0, spoilt, weighed=True)
    assert _relative(weighed, true) < 0.4 * _relative(alike, true)
    assert (~weighed.kept[0]).nonzero()[:, 0].tolist() == spoilt
    stated = float(weighed.deviation.norm() / true.norm())
    assert 1 / 3 < _relative(weighed, true) / stated < 3
    assert weighed.misfit < 1e-4


def test_what_derivatives_are_off_by_shows_in_what_is_left() -> None:
    found, true = _solved(1, [], weighed=True, off=1e-4)
    stated = float(found.deviation.norm() / true.norm())
    assert 1 / 3 < _relative(found, true) / stated < 3


def test_equations_that_leave_something_open_give_nothing() -> None:
    matrix = torch.ones(40, 4, dtype=torch.float64)
    assert (
        solve_weighted(matrix, torch.ones(40, 3, dtype=torch.float64), torch.ones(40, 3, dtype=torch.float64)) is None
    )


@pytest.mark.parametrize(("better", "left_out"), [(False, []), (True, [3])])
def test_channels_that_are_said_to_be_kept_are_those_that_a_solution_rests_on(
    better: bool, left_out: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first round contradicts one channel; what is solved without it is taken only where it is better."""
    made = list[Tensor]()

    def told(matrix: Tensor, given: Tensor, deviation: Tensor) -> weighted_equations.WeightedSolution | None:
        found = solve_weighted(matrix, given, deviation)
        assert found is not None
        left, size = found.left.clone(), found.deviation
        if not made:
            left[3 * 9 : 4 * 9] *= 100
        else:
            size = size * (0.5 if better else 2.0)
        made.append(found.values)
        return replace(found, left=left, deviation=size)

    monkeypatch.setattr(equations, "solve_weighted", told)
    found, _ = _solved(0, [], weighed=True)
    assert len(made) == 2
    assert (~found.kept[0]).nonzero()[:, 0].tolist() == left_out
    assert torch.equal(found.values, made[len(left_out)])


@pytest.mark.parametrize(("channels", "asked"), [(5, 5), (12, 12), (23, 23), (24, 12), (512, 13)])
def test_all_channels_that_are_asked_are_charged_for(channels: int, asked: int) -> None:
    each = 2.0 * 10**2 * 30 + 10**3 / 3
    assert weighted_equations.operations_weighted(10, 100, channels) == pytest.approx((channels + 4 * asked) * each)
    both = equations.operations_weighed(10, 100, channels)
    assert both == pytest.approx(2 * weighted_equations.operations_weighted(10, 100, channels))

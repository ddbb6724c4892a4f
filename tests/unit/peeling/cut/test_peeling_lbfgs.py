"""Descents of many images at once, on functions whose minima are known."""

from __future__ import annotations

import torch
from gradinversion.peeling.cut.lbfgs import descend
from torch import Tensor

SHAPE = (1, 4, 5)
NONE = torch.zeros(3)
RANDOM = torch.Generator().manual_seed(0)
MINIMA = torch.randn(3, *SHAPE, generator=RANDOM, dtype=torch.float64)
# The second image is 1,000 times as stiff in some directions as in others, the third begins at its minimum.
CURVATURES = torch.stack([torch.ones(20), torch.logspace(-3, 0, 20), torch.ones(20)]).double().reshape(3, *SHAPE)


def quadratic(which: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    off = candidates - MINIMA[which]
    return (CURVATURES[which] * off.square()).sum(dim=(1, 2, 3)) / 2, CURVATURES[which] * off


def rosenbrock(which: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    candidates = candidates.detach().requires_grad_()
    with torch.enable_grad():
        flat = candidates.flatten(1)
        value = (100 * (flat[:, 1:] - flat[:, :-1].square()).square() + (1 - flat[:, :-1]).square()).sum(dim=1)
        (derivative,) = torch.autograd.grad(value.sum(), candidates)
    return value.detach(), derivative


def starts() -> Tensor:
    start = torch.zeros(3, *SHAPE, dtype=torch.float64)
    start[2] = MINIMA[2]
    return start


def test_each_image_finds_its_minimum() -> None:
    found = descend(quadratic, starts(), 600, NONE)
    assert float((found.images - MINIMA).abs().max()) < 1e-6
    assert (found.loss < 1e-12).all()


def test_an_image_that_has_ended_is_evaluated_no_more() -> None:
    asked: list[list[int]] = []

    def noted(which: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(which.tolist())
        return quadratic(which, candidates)

    found = descend(noted, starts(), 600, NONE)
    assert asked[0] == [0, 1, 2]
    assert int(found.evaluations[2]) == 1
    assert int(found.evaluations[1]) > int(found.evaluations[0])
    assert sum(map(len, asked)) == int(found.evaluations.sum())
    assert all(2 not in which for which in asked[1:])


def test_images_do_not_see_each_other() -> None:
    together = descend(quadratic, starts(), 600, NONE)

    def second(which: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        return quadratic(which + 1, candidates)

    alone = descend(second, starts()[1:2], 600, NONE[:1])
    assert torch.equal(alone.images[0], together.images[1])


def test_a_bent_valley_is_followed() -> None:
    found = descend(rosenbrock, torch.full((2, 1, 2, 5), -0.5, dtype=torch.float64), 2000, NONE[:2])
    assert (found.loss < 1e-10).all()


def test_a_kink_does_not_end_the_descent_early() -> None:
    def bent(which: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        off = candidates - MINIMA[which]
        slopes = torch.where(off > 0, 3.0, 1.0)
        return (slopes * off.square()).sum(dim=(1, 2, 3)) / 2, slopes * off

    found = descend(bent, torch.zeros_like(MINIMA), 900, NONE)
    assert float((found.images - MINIMA).abs().max()) < 1e-5


def test_no_more_is_evaluated_than_was_allowed() -> None:
    told: list[int] = []
    found = descend(rosenbrock, torch.zeros(3, *SHAPE).double(), 20, NONE, lambda made, _: told.append(made))
    assert int(found.evaluations.sum()) == told[-1] == 18
    assert torch.isfinite(found.loss).all()


def test_what_is_not_finite_ends_that_image_alone() -> None:
    def broken(which: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        value, derivative = quadratic(which, candidates)
        return torch.where(which == 0, torch.nan, value), derivative

    found = descend(broken, starts(), 600, NONE)
    assert torch.equal(found.images[0], starts()[0])
    assert int(found.evaluations[0]) == 1
    assert float((found.images[1] - MINIMA[1]).abs().max()) < 1e-6


def test_where_nothing_falls_the_start_is_kept() -> None:
    def uphill(which: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        # The derivative points the wrong way.
        return candidates.square().sum(dim=(1, 2, 3)), -candidates

    start = torch.ones(1, *SHAPE).double()
    found = descend(uphill, start, 500, NONE[:1])
    assert torch.equal(found.images, start)
    assert int(found.evaluations.sum()) < 50


def test_in_noise_a_descent_ends_sooner() -> None:
    def rough(which: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        value, derivative = quadratic(which, candidates)
        return value.float().double() + 1e-3, derivative

    patient = descend(rough, starts(), 600, NONE)
    hasty = descend(rough, starts(), 600, torch.full((3,), 2e-3))
    assert int(hasty.evaluations.sum()) < int(patient.evaluations.sum())
    assert (hasty.loss < 1.1e-3).all()

"""The distances between two gradients: values written out, derivatives, and what happens where they vanish."""

from __future__ import annotations

import math

import pytest
import torch
from gradinversion.agents import GradientLoss
from gradinversion.agents.gradient_losses import GRADIENT_LOSSES, cosine, layer_l2, relative_l2, squared_l2
from torch import Tensor

_FOUND = [torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([1.0, 2.0])]
_TARGET = [torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0])]


def _gradients(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes or ((3, 2), (4,), (2, 1, 2))]


def test_known_values() -> None:
    assert float(layer_l2(_FOUND, _TARGET)) == pytest.approx(5 + 2)
    assert float(relative_l2(_FOUND, _TARGET)) == pytest.approx((5 + 2) / (0 + 1))
    assert float(squared_l2(_FOUND, _TARGET)) == pytest.approx(25 + 4)
    assert float(cosine(_FOUND, _TARGET)) == pytest.approx(1 - 1 / math.sqrt(25 + 5))


def test_against_loops() -> None:
    found, target = _gradients(), _gradients()
    layers, squares, lengths = 0.0, 0.0, 0.0
    product, found_square, target_square = 0.0, 0.0, 0.0
    for a, b in zip(found, target, strict=True):
        pairs = [(float(x), float(y)) for x, y in zip(a.flatten(), b.flatten(), strict=True)]
        distance = sum((x - y) ** 2 for x, y in pairs)
        layers, squares = layers + math.sqrt(distance), squares + distance
        lengths += math.sqrt(sum(y * y for _, y in pairs))
        product += sum(x * y for x, y in pairs)
        found_square += sum(x * x for x, _ in pairs)
        target_square += sum(y * y for _, y in pairs)
    assert float(layer_l2(found, target)) == pytest.approx(layers, rel=1e-12)
    assert float(relative_l2(found, target)) == pytest.approx(layers / lengths, rel=1e-12)
    assert float(squared_l2(found, target)) == pytest.approx(squares, rel=1e-12)
    expected = 1 - product / math.sqrt(found_square * target_square)
    assert float(cosine(found, target)) == pytest.approx(expected, rel=1e-12)


def test_every_name_has_its_equation() -> None:
    assert set(GRADIENT_LOSSES) == set(GradientLoss)
    assert GRADIENT_LOSSES[GradientLoss.COSINE] is cosine
    assert GRADIENT_LOSSES[GradientLoss.LAYER_L2] is layer_l2


@pytest.mark.parametrize("name", list(GradientLoss))
def test_derivative_by_the_found_gradient(name: GradientLoss) -> None:
    target = _gradients()
    found = [g.requires_grad_() for g in _gradients()]
    assert torch.autograd.gradcheck(lambda *g: GRADIENT_LOSSES[name](g, target), found)


@pytest.mark.parametrize("name", list(GradientLoss))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_at_equality_with_a_finite_derivative(name: GradientLoss, dtype: torch.dtype) -> None:
    target = [g.to(dtype) for g in _gradients()]
    found = [g.clone().requires_grad_() for g in target]
    value = GRADIENT_LOSSES[name](found, target)
    derivative = torch.cat([d.flatten() for d in torch.autograd.grad(value, found)])
    assert abs(float(value.detach())) < 1e-6
    assert float(derivative.abs().max()) < 1e-6


@pytest.mark.parametrize("name", list(GradientLoss))
@pytest.mark.parametrize("zero", ["found", "target", "both", "one layer"])
def test_gradients_of_zero_give_no_nan(name: GradientLoss, zero: str) -> None:
    # A candidate on which every ReLU is shut has a gradient of exactly zero.
    found, target = _gradients(), _gradients()
    if zero == "one layer":
        found[0], target[0] = torch.zeros_like(found[0]), torch.zeros_like(target[0])
    if zero in ("found", "both"):
        found = [torch.zeros_like(g) for g in found]
    if zero in ("target", "both"):
        target = [torch.zeros_like(g) for g in target]
    found = [g.requires_grad_() for g in found]
    value = GRADIENT_LOSSES[name](found, target)
    assert bool(torch.isfinite(value.detach()))
    assert all(bool(torch.isfinite(d).all()) for d in torch.autograd.grad(value, found))


@pytest.mark.parametrize("loss", [relative_l2, cosine])
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_scale_free_losses(loss: type, factor: float) -> None:
    found, target = _gradients(), _gradients()
    scaled = [[factor * g for g in gradients] for gradients in (found, target)]
    assert float(loss(*scaled)) == pytest.approx(float(loss(found, target)), rel=1e-9)


def test_the_cosine_sees_direction_only() -> None:
    target = _gradients()
    assert float(cosine([5 * g for g in target], target)) == pytest.approx(0, abs=1e-12)
    assert float(cosine([-g for g in target], target)) == pytest.approx(2)


@pytest.mark.parametrize("name", list(GradientLoss))
def test_gradients_of_another_number_are_refused(name: GradientLoss) -> None:
    with pytest.raises(ValueError, match="argument"):
        GRADIENT_LOSSES[name](_gradients()[:2], _gradients())

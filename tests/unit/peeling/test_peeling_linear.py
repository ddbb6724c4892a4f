"""A linear layer solved from its weight gradient, and the ReLU behind it mended."""

from __future__ import annotations

import pytest
import torch
from gradinversion.peeling.layers import Equations, Solved
from gradinversion.peeling.linear import peel_linear
from torch import Tensor, nn


def _equations(
    layer: nn.Linear,
    gradient: Tensor,
    cotangent: Tensor,
    outputs: Tensor,
    known: Tensor,
    unmasked: Tensor,
    doubtful: Tensor,
) -> Equations:
    shape = (len(cotangent), layer.in_features)
    return Equations(shape, layer.weight.detach(), gradient, cotangent, outputs, known, 0.0, unmasked, doubtful)


class _Case:
    """A layer of 24 outputs without a bias, three images' input to it, and the cotangent behind its ReLU."""

    def __init__(self, seed: int = 0, columns: int = 40) -> None:
        random = torch.Generator().manual_seed(seed)
        self.layer = nn.Linear(columns, 24, bias=False).double()
        self.inputs = torch.randn(3, columns, generator=random, dtype=torch.float64)
        with torch.no_grad():
            self.outputs = self.layer(self.inputs)
        self.is_open = self.outputs > 0
        self.unmasked = torch.randn(3, 24, generator=random, dtype=torch.float64)
        self.cotangent = self.unmasked * self.is_open
        self.gradient = self.cotangent.T @ self.inputs

    def solve(self, is_open: Tensor, doubtful: Tensor, noise: float = 0.0) -> Solved:
        off = noise * torch.randn(self.gradient.shape, generator=torch.Generator().manual_seed(9)).double()
        outputs = self.outputs * is_open
        return peel_linear(
            _equations(
                self.layer, self.gradient + off, self.unmasked * is_open, outputs, is_open, self.unmasked, doubtful
            )
        )

    def error(self, solved: Solved) -> float:
        return float((solved.activations - self.inputs).norm() / self.inputs.norm())


@pytest.mark.parametrize("columns", [40, 2000])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 3])
def test_units_on_the_wrong_side_are_found_without_any_bias(seed: int, count: int, columns: int) -> None:
    case = _Case(seed, columns)
    flipped = case.is_open.flatten().clone()
    flipped[torch.randperm(flipped.numel(), generator=torch.Generator().manual_seed(seed))[:count]] ^= True
    begun = flipped.reshape(case.is_open.shape)
    unmended = case.solve(begun, torch.zeros_like(begun))
    assert unmended.error > 1e-2
    solved = case.solve(begun, torch.ones_like(begun))
    assert solved.cotangent is not None
    torch.testing.assert_close(solved.cotangent, case.cotangent, rtol=0, atol=0)
    assert case.error(solved) < 1e-9
    assert solved.error < 1e-6


@pytest.mark.parametrize("noise", [1e-6, 1e-3])
def test_noise_switches_nothing_and_is_stated(noise: float) -> None:
    case = _Case()
    solved = case.solve(case.is_open, torch.ones_like(case.is_open), noise)
    assert solved.cotangent is not None
    assert torch.equal(solved.cotangent != 0, case.is_open)
    assert case.error(solved) < 3 * solved.error
    off = (solved.activations - case.inputs).abs()
    assert bool((off < solved.uncertainty).all())
    assert float(off.max()) > 0.1 * float(solved.uncertainty.min())


def test_more_images_than_outputs_are_not_solved() -> None:
    layer = nn.Linear(40, 2, bias=False).double()
    many = torch.ones(3, 2, dtype=torch.float64)
    no = torch.zeros_like(many).bool()
    solved = peel_linear(_equations(layer, torch.ones(2, 40, dtype=torch.float64), many, many, no, many, no))
    assert solved.error == float("inf")

"""A convolution solved from its weight gradient alone, and the ReLU behind it mended."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.peeling.direct import Direct, solve_directly
from gradinversion.peeling.geometry import Geometry
from torch import Tensor, nn

_GEOMETRIES = [
    nn.Conv2d(4, 24, 3, 1, 1),
    nn.Conv2d(4, 24, 3, 2, 1),
    nn.Conv2d(4, 24, 3, 1, 2, dilation=2),
    nn.Conv2d(4, 40, (3, 1), (2, 1), (1, 0)),
]


class _Case:
    """A layer, two images' input to it, and the cotangent behind a ReLU that about half of the units pass."""

    def __init__(self, layer: nn.Conv2d, side: int = 6) -> None:
        random = torch.Generator().manual_seed(0)
        self.layer = layer.double()
        self.inputs = torch.randn(2, layer.in_channels, side, side, generator=random, dtype=torch.float64).relu()
        with torch.no_grad():
            outputs = layer(self.inputs)
        self.unmasked = torch.randn(outputs.shape, generator=random, dtype=torch.float64)
        self.open = outputs > 0
        self.cotangent = self.unmasked * self.open
        weight = layer.weight.detach().clone().requires_grad_()
        geometry = (layer.stride, layer.padding, layer.dilation)
        output = F.conv2d(self.inputs, weight, None, *geometry)  # type: ignore[arg-type]
        (self.gradient,) = torch.autograd.grad(output, weight, self.cotangent)

    def solve(self, cotangent: Tensor, doubtful: Tensor | None = None, gradient: Tensor | None = None) -> Direct | None:
        doubtful = torch.ones_like(self.open) if doubtful is None else doubtful
        gradient = self.gradient if gradient is None else gradient
        layer: Any = self.layer
        geometry = Geometry(layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
        return solve_directly(
            geometry, tuple(self.inputs.shape), gradient, cotangent, self.unmasked, doubtful, settled=1e-9
        )

    def error(self, found: Direct) -> float:
        return float((found.activations - self.inputs).norm() / self.inputs.norm())


@pytest.mark.parametrize("layer", _GEOMETRIES, ids=["same", "strided", "dilated", "oblong"])
def test_the_input_comes_back(layer: nn.Conv2d) -> None:
    case = _Case(layer)
    found = case.solve(case.cotangent)
    assert found is not None
    assert case.error(found) < 1e-9
    assert found.misfit < 1e-12


def test_noise_is_amplified_as_it_says() -> None:
    case = _Case(nn.Conv2d(4, 24, 3, 1, 1))
    size = 1e-6 * float(case.gradient.square().mean().sqrt())
    noise = size * torch.randn(case.gradient.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = case.solve(case.cotangent, gradient=case.gradient + noise)
    assert found is not None
    error = float((found.activations - case.inputs).square().mean().sqrt())
    left = found.misfit * float(case.gradient.square().mean().sqrt())
    assert error == pytest.approx(found.amplification * left, rel=0.3)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("kind", ["open taken for shut", "shut taken for open", "both"])
def test_units_that_are_wrong_are_switched(count: int, kind: str) -> None:
    case = _Case(nn.Conv2d(4, 40, 3, 1, 1))
    places = torch.randperm(case.open.numel(), generator=torch.Generator().manual_seed(2))
    is_open = case.open.flatten()[places]
    wrong = {"open taken for shut": places[is_open], "shut taken for open": places[~is_open], "both": places}[kind]
    flipped = case.open.flatten().clone()
    flipped[wrong[:count]] ^= True
    begun = case.unmasked * flipped.reshape(case.open.shape)
    unmended = case.solve(begun, doubtful=torch.zeros_like(case.open))
    assert unmended is not None
    assert case.error(unmended) > 1e-3
    found = case.solve(begun)
    assert found is not None
    assert torch.equal(found.cotangent, case.cotangent)
    assert case.error(found) < 1e-9


def test_noise_alone_switches_nothing() -> None:
    case = _Case(nn.Conv2d(4, 24, 3, 1, 1))
    size = 0.01 * float(case.gradient.square().mean().sqrt())
    noise = size * torch.randn(case.gradient.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = case.solve(case.cotangent, gradient=case.gradient + noise)
    assert found is not None
    assert torch.equal(found.cotangent, case.cotangent)


def test_what_cannot_be_solved_is_left_to_others() -> None:
    assert _Case(nn.Conv2d(4, 4, 3, 1, 1)).solve(torch.ones(2, 4, 6, 6, dtype=torch.float64)) is None  # too few
    grouped = _Case(nn.Conv2d(4, 24, 3, 1, 1, groups=1))
    assert grouped.solve(torch.zeros_like(grouped.cotangent)) is None  # singular
    unseen = _Case(nn.Conv2d(4, 200, 1, 3))
    assert unseen.solve(unseen.cotangent) is None  # pixels that no output sees

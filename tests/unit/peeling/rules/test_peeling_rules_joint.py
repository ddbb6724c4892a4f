from __future__ import annotations

import torch
import torch.nn.functional as F
from gradinversion.peeling.kinds import Convolution
from gradinversion.peeling.rules.equations import GradientEquations, gradient_equations
from gradinversion.peeling.rules.joint import joint_operations, operations_allowed, solve_jointly
from gradinversion.peeling.rules.knowledge import Known
from torch import Tensor

IMAGES, CHANNELS, SIDE, OUTPUTS = 2, 6, 4, 24


def _case(stride: int, noise: float = 0.0) -> tuple[GradientEquations, Tensor]:
    """A pointwise convolution's weight gradient, and its input, which is rectified."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, generator=random, dtype=torch.float64).clamp_min(0)
    weight = torch.zeros(OUTPUTS, CHANNELS, 1, 1, dtype=torch.float64, requires_grad=True)
    output = F.conv2d(values, weight, stride=stride)
    cotangent = torch.randn(output.shape, generator=random, dtype=torch.float64)
    gradient = torch.autograd.grad(output, weight, cotangent)[0]
    gradient = gradient + noise * gradient.square().mean().sqrt() * torch.randn(gradient.shape, generator=random)
    kind = Convolution((1, 1), (stride, stride), (0, 0), (1, 1), 1)
    return gradient_equations(kind, (SIDE, SIDE), gradient, cotangent), values


def _nothing(values: Tensor) -> Known:
    return Known(torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool), torch.zeros_like(values), "")


def test_places_that_no_equation_sees_are_not_known() -> None:
    """A shut unit is zero, and so is what an equation leaves open."""
    equations, values = _case(stride=2, noise=1e-6)
    found = solve_jointly([equations], [], _nothing(values), rectified=True, operations=1e9)
    error = Known(found.values, torch.ones_like(values, dtype=torch.bool), found.deviation, "").error
    assert float(error.min()) > 0.1
    seen = (slice(None), slice(None), slice(None, None, 2), slice(None, None, 2))
    torch.testing.assert_close(found.values[seen], values[seen], rtol=1e-3, atol=1e-3)


def test_known_entries_hold_what_equations_leave_open() -> None:
    equations, values = _case(stride=2, noise=1e-6)
    known = torch.ones_like(values, dtype=torch.bool)
    known[:, :, ::2, ::2] = False
    before = Known(values * known, known, torch.full_like(values, 1e-6), "")
    found = solve_jointly([equations], [], before, rectified=True, operations=1e9)
    off = (found.values - values).flatten(1).norm(dim=1) / values.flatten(1).norm(dim=1)
    error = Known(found.values, torch.ones_like(known), found.deviation, "").error
    assert float(off.max()) < 1e-4
    assert bool((error > off / 10).all())
    assert float(error.max()) < 1e-2


def test_a_solution_takes_its_share_of_what_is_left_or_is_not_begun() -> None:
    each = joint_operations(256, 64, [])
    assert operations_allowed(1e13, 256, 64, []) == 4000 * each
    assert operations_allowed(1e4 * each, 256, 64, []) == 2500 * each
    assert operations_allowed(1e3 * each, 256, 64, []) is None
    # A large one gets a tenth.
    large = joint_operations(4096, 512, [])
    assert operations_allowed(1e4 * large, 4096, 512, []) == 1e3 * large
    assert operations_allowed(5e3 * large, 4096, 512, []) is None

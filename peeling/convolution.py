"""One convolution: its input from its weight gradient and its known outputs, once the cotangent behind it is known."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from .conjugate_gradients import conjugate_gradients
from .direct import OVERDETERMINED, solve_directly
from .geometry import Geometry
from .layers import LARGEST, SETTLED, UNSOLVED, Equations, Solved, relative, rounding, size, worst

_CONJUGATE_GRADIENT_STEPS = 600
# Far below what a float32 gradient is rounded to, through the worst conditioned layer seen (1e4).
_RELATIVE_RESIDUAL = 1e-10
_LARGEST_UNKNOWN = 8_000_000
# Above this estimated error of the direct solution the known outputs are asked too.
_CLEAN = 1e-3
# The least uncertainty of a place, as a share of the usual one.
_LEAST_LOCAL = 0.3


def peel_convolution(geometry: Geometry, given: Equations) -> Solved:
    """The input of a convolution, the least-squares solution of two sets of linear equations.

    The weight gradient, ``sum_i a_i * cotangent_i`` (a correlation), is linear in the inputs ``a_i`` of all images;
    so are the outputs, known wherever the ReLU behind them was open. Where the first set is enough by itself it is
    solved directly (``direct.py``), and the second confirms it. Elsewhere both are solved by conjugate gradients in
    float64, twice: the second time from another start, with both sets of equations off by as much as their known
    errors. Where the two disagree, the equations left something open or hold it too weakly.

    Args:
        geometry: Where the kernel goes.
        given: What the input has to obey.
    """
    input_shape, cotangent, known, weight = given.input_shape, given.cotangent, given.known, given.weight
    unknowns = math.prod(input_shape)
    equations = given.weight_gradient.numel() + int(known.sum())
    if unknowns > _LARGEST_UNKNOWN or equations < OVERDETERMINED * unknowns:
        return UNSOLVED
    gradient, outputs = given.weight_gradient.to(cotangent), given.outputs * known
    where = geometry.keywords

    def forward(activations: Tensor) -> tuple[Tensor, Tensor]:
        by_weight = conv2d_weight(activations, list(weight.shape), cotangent, **where)  # type: ignore[no-untyped-call]
        return by_weight, F.conv2d(activations, weight, None, **where) * known

    scale = (1 / gradient.norm().square(), 1 / outputs.norm().square().clamp_min(1e-300))

    def adjoint(by_weight: Tensor, by_output: Tensor) -> Tensor:
        first = conv2d_input(list(input_shape), scale[0] * by_weight, cotangent, **where)  # type: ignore[no-untyped-call]
        return first + conv2d_input(list(input_shape), weight, scale[1] * by_output * known, **where)  # type: ignore[no-untyped-call]

    least = rounding(given.weight_gradient)
    settled = max(SETTLED * least, given.error)
    direct = solve_directly(geometry, input_shape, gradient, cotangent, given.unmasked, given.doubtful, settled)
    if direct is not None:
        alone = direct.activations
        sure = known & (direct.cotangent == cotangent)
        contradiction = relative(sure * (forward(alone)[1] - outputs), sure * outputs)
        noise_size = direct.amplification * max(direct.misfit, least) * size(gradient)
        error = worst(noise_size / max(size(alone), 1e-300), contradiction)
        if error <= _CLEAN:
            noise = direct.spread * direct.left.clamp_min(max(direct.misfit, least) * size(gradient))[:, None, None]
            return Solved(alone, error, LARGEST * noise, direct.cotangent)

    def normal(activations: Tensor) -> Tensor:
        return adjoint(*forward(activations))

    first = conjugate_gradients(
        normal, adjoint(gradient, outputs), _CONJUGATE_GRADIENT_STEPS, _RELATIVE_RESIDUAL
    ).solution
    by_weight, by_output = forward(first)
    misfits = relative(by_weight - gradient, gradient), relative(by_output - outputs, outputs)
    random = torch.Generator().manual_seed(0)
    moved = adjoint(
        _off(gradient, worst(least, misfits[0]), random),
        _off(outputs, worst(given.error, misfits[1]), random),
    )
    start = torch.randn(input_shape, generator=random, dtype=gradient.dtype) * first.std()
    apart = first - conjugate_gradients(normal, moved, _CONJUGATE_GRADIENT_STEPS, _RELATIVE_RESIDUAL, start).solution
    error = worst(*misfits, relative(apart, first))
    # How far the two are apart at one place, over its channels, is a sample of what is left open there.
    local = apart.square().mean(dim=1, keepdim=True).sqrt().clamp_min(_LEAST_LOCAL * size(apart))
    return Solved(first, error, LARGEST * local.expand_as(first))


def _off(values: Tensor, relative_error: float, noise: torch.Generator) -> Tensor:
    """The values plus noise of this relative size."""
    return values + relative_error * size(values) * torch.randn(values.shape, generator=noise, dtype=values.dtype)

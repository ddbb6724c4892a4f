"""One convolution or linear layer: its input from its weight gradient, once the cotangent behind it is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from .direct import OVERDETERMINED, solve_directly

_CONJUGATE_GRADIENT_STEPS = 600
# Far below what a float32 gradient is rounded to, through the worst conditioned layer seen (1e4).
_RELATIVE_RESIDUAL = 1e-10
_LARGEST_UNKNOWN = 8_000_000
# Up to this estimated error units that are shut show how large errors are; those of a defence spare some units.
SHOWN_UP_TO = 1e-3
LARGEST = 5.0
"""The largest error of an activation, in deviations."""
# Above this estimated error of the direct solution the known outputs are asked too.
_CLEAN = 1e-3
# The least uncertainty of a place, as a share of the usual one.
_LEAST_LOCAL = 0.3
SETTLED = 30.0
"""Misfit of a solution, in roundings of the gradient, at which no unit of the ReLU is looked for."""


@dataclass(frozen=True)
class Solved:
    """A layer's input for each image, with the estimated relative error of it (``inf``: not determined)."""

    activations: Tensor
    error: float
    uncertainty: Tensor
    """Estimated largest absolute error of each activation, of the same shape."""
    cotangent: Tensor | None = None
    """The cotangent that it was found with, where that was mended; None where it is the one that was given."""


UNSOLVED = Solved(torch.empty(0), float("inf"), torch.empty(0))


def worst(*errors: float) -> float:
    """The largest error; ``inf`` when one is not a number, which ``max`` would lose."""
    return float("inf") if any(math.isnan(error) for error in errors) else max(errors)


def rounding(gradient: Tensor) -> float:
    """The relative error that a gradient has at least, from being stored in its type."""
    return max(1e-9, torch.finfo(gradient.dtype).eps / 2)


def spread_error(activations: Tensor, error: float) -> Tensor:
    """The largest absolute error of each activation where a relative error is spread evenly over all of them."""
    return torch.full_like(activations, LARGEST * error * size(activations))


def batch_norm_affine(module: nn.BatchNorm2d | nn.BatchNorm1d, dimensions: int) -> tuple[Tensor, Tensor]:
    """Batch norm in evaluation mode as ``scale * x + shift``, broadcastable over ``(batch, channel, ...)``."""
    assert module.running_mean is not None
    assert module.running_var is not None
    scale = (module.running_var + module.eps).rsqrt()
    if module.affine:
        scale = scale * module.weight
    shift = -module.running_mean * scale
    if module.affine:
        shift = shift + module.bias
    view = (1, -1) + (1,) * (dimensions - 2)
    return scale.view(view), shift.view(view)


def peel_convolution(
    layer: nn.Conv2d,
    input_shape: tuple[int, ...],
    weight_gradient: Tensor,
    cotangent: Tensor,
    outputs: Tensor,
    known: Tensor,
    output_error: float,
    unmasked: Tensor,
    doubtful: Tensor,
) -> Solved:
    """The input of a convolution, the least-squares solution of two sets of linear equations.

    The weight gradient, ``sum_i a_i * cotangent_i`` (a correlation), is linear in the inputs ``a_i`` of all images;
    so are the outputs, known wherever the ReLU behind them was open. Where the first set is enough by itself it is
    solved directly (``direct.py``), and the second confirms it. Elsewhere both are solved by conjugate gradients in
    float64, twice: the second time from another start, with both sets of equations off by as much as their known
    errors. Where the two disagree, the equations left something open or hold it too weakly.

    Args:
        layer: The convolution (zero padding).
        input_shape: Shape of its input with the batch in front.
        weight_gradient: Captured gradient by its weight, in the type it was sent in.
        cotangent: Derivative of the mean loss by its output, the same shape as ``outputs``.
        outputs: The layer's output without its bias, where known.
        known: Mask of ``outputs``.
        output_error: Estimated relative error of ``outputs``.
        unmasked: The cotangent if every unit of the ReLU behind were open.
        doubtful: Units of it that may be open or shut.
    """
    unknowns = math.prod(input_shape)
    equations = weight_gradient.numel() + int(known.sum())
    usable = layer.padding_mode == "zeros" and not isinstance(layer.padding, str) and unknowns <= _LARGEST_UNKNOWN
    if not usable or equations < OVERDETERMINED * unknowns:
        return UNSOLVED
    gradient, outputs = weight_gradient.to(cotangent), outputs * known
    weight = layer.weight.detach().to(gradient)
    geometry: dict[str, Any] = {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }

    def forward(activations: Tensor) -> tuple[Tensor, Tensor]:
        by_weight = conv2d_weight(activations, list(weight.shape), cotangent, **geometry)  # type: ignore[no-untyped-call]
        return by_weight, F.conv2d(activations, weight, None, **geometry) * known

    scale = (1 / gradient.norm().square(), 1 / outputs.norm().square().clamp_min(1e-300))

    def adjoint(by_weight: Tensor, by_output: Tensor) -> Tensor:
        first = conv2d_input(list(input_shape), scale[0] * by_weight, cotangent, **geometry)  # type: ignore[no-untyped-call]
        return first + conv2d_input(list(input_shape), weight, scale[1] * by_output * known, **geometry)  # type: ignore[no-untyped-call]

    least = rounding(weight_gradient)
    direct = solve_directly(
        layer, input_shape, gradient, cotangent, unmasked, doubtful, max(SETTLED * least, output_error)
    )
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

    first = _conjugate_gradients(normal, adjoint(gradient, outputs), torch.zeros(input_shape, dtype=gradient.dtype))
    by_weight, by_output = forward(first)
    misfits = relative(by_weight - gradient, gradient), relative(by_output - outputs, outputs)
    random = torch.Generator().manual_seed(0)
    moved = adjoint(
        _off(gradient, worst(rounding(weight_gradient), misfits[0]), random),
        _off(outputs, worst(output_error, misfits[1]), random),
    )
    start = torch.randn(input_shape, generator=random, dtype=gradient.dtype) * first.std()
    apart = first - _conjugate_gradients(normal, moved, start)
    error = worst(*misfits, relative(apart, first))
    # How far the two are apart at one place, over its channels, is a sample of what is left open there.
    local = apart.square().mean(dim=1, keepdim=True).sqrt().clamp_min(_LEAST_LOCAL * size(apart))
    return Solved(first, error, LARGEST * local.expand_as(first))


def size(values: Tensor) -> float:
    """Root mean square."""
    return float(values.square().mean().sqrt())


def relative(difference: Tensor, reference: Tensor) -> float:
    """Length of a difference, as a share of the other."""
    return float(difference.norm() / reference.norm().clamp_min(1e-300))


def _off(values: Tensor, relative_error: float, noise: torch.Generator) -> Tensor:
    """The values plus noise of this relative size."""
    return values + relative_error * size(values) * torch.randn(values.shape, generator=noise, dtype=values.dtype)


def _conjugate_gradients(normal: Callable[[Tensor], Tensor], target: Tensor, start: Tensor) -> Tensor:
    solution = start.clone()
    residual = target - normal(solution)
    direction = residual.clone()
    square = residual.square().sum()
    limit = _RELATIVE_RESIDUAL**2 * target.square().sum()
    for _ in range(_CONJUGATE_GRADIENT_STEPS):
        if not square > limit:  # settled, or not a number
            break
        image = normal(direction)
        length = square / (direction * image).sum()
        solution += length * direction
        residual -= length * image
        following = residual.square().sum()
        direction = residual + following / square * direction
        square = following
    return solution

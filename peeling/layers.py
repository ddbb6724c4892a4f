"""One convolution or linear layer: its input from its weight gradient, once the cotangent behind it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONJUGATE_GRADIENT_STEPS = 1500
_RELATIVE_RESIDUAL = 1e-13
_LARGEST_UNKNOWN = 8_000_000
# How much longer than the list of unknowns the list of equations must be before a solve is tried.
_OVERDETERMINED = 1.02


@dataclass(frozen=True)
class Solved:
    """A layer's input for each image, with the estimated relative error of it (``inf``: not determined)."""

    activations: Tensor
    error: float


_UNSOLVED = Solved(torch.empty(0), float("inf"))


def peel_linear(weight_gradient: Tensor, cotangent: Tensor) -> Solved:
    """The input ``A`` of a linear layer from ``gradient = cotangent^T A``, a linear system with one row per image.

    Args:
        weight_gradient: ``(output, input)``.
        cotangent: ``(batch, output)``, derivative of the mean loss by the layer's output.
    """
    singular = torch.linalg.svdvals(cotangent)
    if cotangent.shape[0] > cotangent.shape[1] or float(singular[-1]) <= 1e-9 * float(singular[0]):
        return _UNSOLVED
    activations = torch.linalg.lstsq(cotangent.T, weight_gradient, driver="gelsd").solution
    misfit = float((cotangent.T @ activations - weight_gradient).norm() / weight_gradient.norm())
    return Solved(activations, max(misfit, 1e-9) * float(singular[0] / singular[-1]))


def peel_convolution(
    layer: nn.Conv2d,
    input_shape: tuple[int, ...],
    weight_gradient: Tensor,
    cotangent: Tensor,
    outputs: Tensor,
    known: Tensor,
) -> Solved:
    """The input of a convolution, the least-squares solution of two sets of linear equations.

    The weight gradient, ``sum_i a_i * cotangent_i`` (a correlation), is linear in the inputs ``a_i`` of all images;
    so are the outputs, known wherever the ReLU behind them was open. Solved by conjugate gradients in float64 from two
    different starts: where they disagree, the equations left something open.

    Args:
        layer: The convolution (zero padding).
        input_shape: Shape of its input with the batch in front.
        weight_gradient: Captured gradient by its weight.
        cotangent: Derivative of the mean loss by its output, the same shape as ``outputs``.
        outputs: The layer's output without its bias, where known.
        known: Mask of ``outputs``.
    """
    unknowns = int(torch.tensor(input_shape).prod())
    equations = weight_gradient.numel() + int(known.sum())
    usable = layer.padding_mode == "zeros" and not isinstance(layer.padding, str) and unknowns <= _LARGEST_UNKNOWN
    if not usable or equations < _OVERDETERMINED * unknowns:
        return _UNSOLVED
    weight = layer.weight.detach().to(weight_gradient)
    geometry = {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }

    def forward(activations: Tensor) -> tuple[Tensor, Tensor]:
        by_weight = torch.nn.grad.conv2d_weight(activations, list(weight.shape), cotangent, **geometry)
        return by_weight, F.conv2d(activations, weight, None, **geometry) * known

    def adjoint(by_weight: Tensor, by_output: Tensor) -> Tensor:
        first = torch.nn.grad.conv2d_input(list(input_shape), by_weight, cotangent, **geometry)
        return first + torch.nn.grad.conv2d_input(list(input_shape), weight, by_output * known, **geometry)

    scale = (1 / weight_gradient.norm().square(), 1 / (outputs * known).norm().square().clamp_min(1e-300))

    def normal(activations: Tensor) -> Tensor:
        by_weight, by_output = forward(activations)
        return adjoint(scale[0] * by_weight, scale[1] * by_output)

    target = adjoint(scale[0] * weight_gradient, scale[1] * outputs * known)
    generator = torch.Generator().manual_seed(0)
    first = _conjugate_gradients(normal, target, torch.zeros(input_shape, dtype=target.dtype))
    start = torch.randn(input_shape, generator=generator, dtype=target.dtype) * first.std()
    second = _conjugate_gradients(normal, target, start)
    by_weight, _ = forward(first)
    misfit = float((by_weight - weight_gradient).norm() / weight_gradient.norm())
    open_part = float((first - second).norm() / first.norm().clamp_min(1e-300))
    return Solved(first, max(misfit, open_part))


def _conjugate_gradients(normal: Callable[[Tensor], Tensor], target: Tensor, start: Tensor) -> Tensor:
    solution = start.clone()
    residual = target - normal(solution)
    direction = residual.clone()
    square = residual.square().sum()
    limit = _RELATIVE_RESIDUAL**2 * target.square().sum()
    for _ in range(_CONJUGATE_GRADIENT_STEPS):
        if square <= limit:
            break
        image = normal(direction)
        length = square / (direction * image).sum()
        solution += length * direction
        residual -= length * image
        following = residual.square().sum()
        direction = residual + following / square * direction
        square = following
    return solution

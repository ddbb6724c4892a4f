"""The taps of one convolution taken apart, each image with its length: the input, and the derivative by the output.

`taps` takes the weight gradient apart up to a mixing of the images, and `images_apart` undoes that up to each image's
length. The lengths stand in the layer in front: where a convolution with weight W alone reads the output of a ReLU, the
gradient that sums up the derivative in front of the ReLU is ``sum_i (1 / t_i) sum_p m_i(c, p) (W^T * Delta_i)(c, p)``
with m the open units: as many equations in the B unknown lengths t_i as there are channels, and so a check of all that
came before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from .images_apart import tell_apart
from .kinds import Kind
from .refusals import Why
from .taps import factor_taps
from .taps_again import apart_again
from .taps_corner import factor_balanced_taps
from .taps_in_groups import Front, factor_taps_in_groups

# Channels whose equation is off by more than so many times the median count for less.
_FAR, _REWEIGHTED = 3.0, 30
# Deviations of a length, of which the residual's median is two thirds of one, that count as its error.
_LENGTH_DOUBT = 4.5
# What the lengths may leave of the gradient that they are taken from.
_LARGEST_MISFIT = 0.01


@dataclass(frozen=True)
class TapSolution:
    """All that the taps of one convolution give."""

    inputs: Float[Tensor, "image channel height width"]
    cotangents: Float[Tensor, "image output height width"]
    """Derivative of the loss by the convolution's output."""
    is_open: Bool[Tensor, "image channel height width"]
    """Units of the ReLU in front."""
    error: Float[Tensor, " image"]
    """Estimated relative error of each image's input."""
    cotangent_error: Float[Tensor, " image"]
    """And of each image's cotangent, which of an image that the network is sure of is known less well."""
    length_error: Float[Tensor, " image"]
    """Estimated, relative, of each image's length."""
    length_misfit: float
    """What the lengths leave of the gradient in front, relative."""
    leak: float
    misfit: float
    """See `Factors`."""


@dataclass(frozen=True)
class NoTaps:
    """There is no solution."""

    why: Why
    misfit: float | None = None
    """What the best one leaves of the gradient that should confirm it, relative."""


def solve_taps(
    weight_gradient: Float[Tensor, "output group_channel row column"],
    shift_gradient: Float[Tensor, " channel"],
    image_count: int,
    size: tuple[int, int],
    kind: Kind,
    tensors: Mapping[str, Tensor],
    balanced: bool = False,
    front: Front | None = None,
) -> TapSolution | NoTaps:
    """The solution, or why there is none.

    Args:
        weight_gradient: Captured, of a convolution that has taps.
        shift_gradient: Captured; it sums up the derivative in front of the ReLU whose output the convolution reads.
        image_count: Of the batch.
        size: Height and width of the convolution's input.
        kind: The convolution's.
        tensors: Its own, by role, in float64 on the CPU.
        balanced: Whether the derivatives by its output add up to zero, as in front of batch norm by the batch's mean.
        front: The convolution in front, which links channels that are in groups.
    """
    groups = len(shift_gradient) // weight_gradient.shape[1]
    if groups > 1 and (front is None or balanced):
        return NoTaps(Why.GROUPS)
    if groups > 1 and front is not None:
        factors = factor_taps_in_groups(weight_gradient, groups, image_count, size, kind, tensors, front)
    else:
        factors = (factor_balanced_taps if balanced else factor_taps)(weight_gradient, image_count, size)
    if factors is None:
        return NoTaps(Why.RANK)
    apart = tell_apart(factors)
    if apart is None:
        return NoTaps(Why.ALIKE)
    inputs, cotangents, is_open = (_maps(rows, size) for rows in (apart.inputs, apart.cotangents, apart.is_open))
    (by_input,) = kind.cotangents(cotangents, [inputs], tensors)
    columns = (by_input * is_open).sum(dim=(2, 3)).T
    inverse, misfit, uncertain = fit_lengths(columns, shift_gradient.detach().cpu().double())
    if not misfit <= _LARGEST_MISFIT or not bool((inverse > 0).all()):
        return NoTaps(Why.LENGTHS, misfit)
    length_error, inverse = uncertain.clamp_min(misfit), inverse[:, None, None, None]
    moved_inputs, moved_cotangents = apart_again(weight_gradient, apart, image_count, size, groups)
    error = apart.error.maximum(moved_inputs).maximum(length_error).clamp_min(3 * factors.misfit)
    return TapSolution(
        inputs / inverse,
        cotangents * inverse,
        is_open,
        error,
        moved_cotangents.maximum(length_error),
        length_error,
        misfit,
        factors.leak,
        factors.misfit,
    )


def fit_lengths(
    columns: Float[Tensor, "channel image"], target: Float[Tensor, " channel"]
) -> tuple[Float[Tensor, " image"], float, Float[Tensor, " image"]]:
    """One over each image's length, by least squares in which channels with a unit on the wrong side count for less;
    what is left in the median channel, relative; and the relative error of each length."""
    # Channels in which no unit of any image is open say nothing, and would hide in the medians what the others leave.
    alive = columns.norm(dim=1) > 0
    if int(alive.sum()) < columns.shape[1]:
        unknown = torch.zeros_like(columns[0])
        return unknown, float("inf"), torch.full_like(unknown, torch.inf)
    columns, target = columns[alive], target[alive]
    size = columns.norm(dim=0).clamp_min(1e-300)
    scaled, weights = columns / size, torch.ones_like(target)
    for _ in range(_REWEIGHTED):
        weighted = scaled * weights[:, None]
        solution = torch.linalg.lstsq(weighted, (target * weights)[:, None]).solution[:, 0]
        left = (scaled @ solution - target).abs()
        typical = float(left.median().clamp_min(1e-300))
        weights = 1 / (1 + (left / (_FAR * typical)).square()).sqrt()
    # An image that the network is sure of adds little to the bias gradient: its length is known less well than the fit
    # is good.
    spread = torch.linalg.pinv(weighted.T @ weighted).diagonal().clamp_min(0).sqrt()
    uncertain = _LENGTH_DOUBT * typical * spread / solution.abs().clamp_min(1e-300)
    return solution / size, float(left.median() / target.abs().median().clamp_min(1e-300)), uncertain


def _maps(rows: Shaped[Tensor, "image place channel"], size: tuple[int, int]) -> Tensor:
    return rows.transpose(1, 2).reshape(len(rows), -1, *size).contiguous()

"""A convolution whose weight gradient alone determines its input: dense least squares, with a ReLU to be mended."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from .geometry import Geometry, gradient_matrix
from .layers import relative

# Entries (400 MB in float64, of which a few copies live at a time), and unknowns of each channel.
_LARGEST_MATRIX = 50_000_000
_MOST_PLACES = 4096
# Operations of all solutions of one layer together: a minute on one core.
_MOST_OPERATIONS = 4e11
OVERDETERMINED = 1.02
"""How much longer than the list of unknowns the list of equations must be before a solution is tried."""
# Units are switched while the misfit falls, so many at a time and so often.
_AT_ONCE, _MOST_SWITCHES, _CANDIDATES = 8, 40, 256
# By which share of the squared misfit a switch must lower it; the best of thousands does so by 0.001 by chance.
_LEAST_GAIN = 0.01


@dataclass(frozen=True)
class Direct:
    """The layer's input and the cotangent that it was found with."""

    activations: Tensor
    cotangent: Tensor
    misfit: float
    """What is left of the weight gradient, relative."""
    amplification: float
    """Root mean square error of an activation for one of 1 in what is left of the weight gradient."""
    spread: Tensor
    """``(batch, 1, height, width)``: the same for each place; they differ by up to 1e4."""
    left: Tensor
    """``(channel,)``: root mean square of what is left of the weight gradient of each input channel."""
    matrix: Tensor
    """The equations, ``(B H W, O K)``."""
    factor: Tensor
    """Lower Cholesky factor of ``matrix @ matrix.T``."""


def solve_directly(
    geometry: Geometry,
    input_shape: tuple[int, ...],
    weight_gradient: Tensor,
    cotangent: Tensor,
    unmasked: Tensor,
    doubtful: Tensor,
    settled: float,
) -> Direct | None:
    """The input of a convolution from its weight gradient.

    The entry of the weight gradient for output channel ``o``, input channel ``c`` and kernel place ``k`` is the sum of
    ``cotangent[i, o, y] a[i, c, p]`` over images ``i`` and the pairs of places ``y`` and ``p`` that ``k`` joins. So
    every input channel obeys the same ``O K`` equations in its ``B H W`` unknowns, one matrix for all of them. Where it
    is taller than wide it is solved by its normal equations in float64, once more for what rounding left.

    One unit of the ReLU behind that is taken for shut and was open, or the other way round, spoils all of it, and
    shows: what is left of the gradient correlates with the patch of the input that the unit sees. Such units are
    switched, the likeliest first, while the misfit falls.

    Returns None where the equations are too few or too many for memory, are singular, or are kept apart by groups.

    Args:
        geometry: Where the kernel goes.
        input_shape: Shape of its input with the batch in front.
        weight_gradient: Captured gradient by its weight, in float64.
        cotangent: Derivative of the mean loss by its output, in float64.
        unmasked: The same if every unit of the ReLU behind were open.
        doubtful: Units that may be open or shut.
        settled: Relative misfit that needs no mending.
    """
    batch, _, height, width = input_shape
    places, equations = batch * height * width, weight_gradient[:, 0].numel()
    fits = places <= _MOST_PLACES and places * equations <= _LARGEST_MATRIX
    if geometry.groups != 1 or not fits or equations < OVERDETERMINED * places:
        return None
    best = _solve(geometry, input_shape, weight_gradient, cotangent)
    affordable = int(_MOST_OPERATIONS / (2 * places**2 * equations))
    for _ in range(min(_MOST_SWITCHES, affordable)):
        if best is None or not best.misfit > settled:
            break
        units, added, gain = _switches(geometry, weight_gradient, best, unmasked, doubtful)
        order = gain.topk(min(_AT_ONCE, len(gain))).indices
        worth = order[gain[order] > max(_LEAST_GAIN, 0.3 * float(gain.max()))]
        following = None
        for some in (worth, worth[:1])[: len(worth)]:
            if following is None:
                trial = best.cotangent.flatten().index_add(0, units[some], added[some]).reshape(cotangent.shape)
                following = _solve(geometry, input_shape, weight_gradient, trial)
                if following is None or not following.misfit < (1 - _LEAST_GAIN / 2) * best.misfit:
                    following = None
        if following is None:
            break
        best = following
    return best


def _solve(
    geometry: Geometry, input_shape: tuple[int, ...], weight_gradient: Tensor, cotangent: Tensor
) -> Direct | None:
    batch, channels, height, width = input_shape
    matrix = gradient_matrix(geometry, (height, width), cotangent)
    places, equations = matrix.shape
    given = weight_gradient.permute(0, 2, 3, 1).reshape(equations, channels)
    factor, failed = torch.linalg.cholesky_ex(matrix @ matrix.T)
    if failed or not bool(torch.isfinite(factor).all()):
        return None
    found = torch.cholesky_solve(matrix @ given, factor)
    found = found + torch.cholesky_solve(matrix @ (given - matrix.T @ found), factor)
    left = given - matrix.T @ found
    misfit = relative(left, given)
    # The covariance of the solution is that of the noise times the inverse normal matrix; a misfit shows only the part
    # of the noise that the unknowns did not take up.
    variance = torch.cholesky_inverse(factor).diagonal() * equations / (equations - places)
    activations = found.reshape(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()
    return Direct(
        activations,
        cotangent,
        misfit,
        math.sqrt(float(variance.mean())),
        variance.sqrt().reshape(batch, 1, height, width),
        left.square().mean(dim=0).sqrt(),
        matrix,
        factor,
    )


def _switches(
    geometry: Geometry, weight_gradient: Tensor, found: Direct, unmasked: Tensor, doubtful: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Units worth a switch, what it adds to their cotangent, and by which share it lowers the squared misfit."""
    where = (geometry.stride, geometry.padding, geometry.dilation)
    shape = list(weight_gradient.shape)
    left = weight_gradient - conv2d_weight(found.activations, shape, found.cotangent, *where)  # type: ignore[no-untyped-call]
    correlation = F.conv2d(found.activations, left, None, *where)
    switch = torch.where(found.cotangent != 0, -unmasked, unmasked)
    promise = torch.where(doubtful, 2 * switch * correlation, 0.0).flatten()
    size = F.conv2d(found.activations.square(), torch.ones_like(left[:1]), None, *where)
    # Its transpose times itself projects onto what the unknowns can take up.
    whitened = torch.linalg.solve_triangular(found.factor, found.matrix, upper=False)
    kept = 1 - len(whitened) / whitened.shape[1]
    usual = torch.where(doubtful, promise.reshape(switch.shape) - switch.square() * size * kept, 0.0).flatten()
    # The best if each patch were as visible as the mean one, and those that may be the best if theirs is less so.
    some = min(_CANDIDATES, len(promise))
    units = torch.unique(torch.cat([promise.topk(some).indices, usual.topk(some).indices]))
    # The unknowns take up most of what a wrong unit adds: only the rest of its patch can be seen, or taken away.
    outputs, kernel = len(weight_gradient), weight_gradient[0, 0].numel()
    patches = F.unfold(found.activations, geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)
    places = patches.shape[2]
    image, channel, place = units // (outputs * places), units // places % outputs, units % places
    patch = patches[image, :, place].reshape(len(units), -1, kernel)
    whitened = whitened.reshape(-1, outputs, kernel)
    seen = torch.stack(
        [one.square().sum() - (one @ whitened[:, o].T).square().sum() for one, o in zip(patch, channel, strict=True)]
    )
    added = switch.flatten()[units]
    gain = promise[units] - added.square() * seen
    return units, added, gain / left.square().sum().clamp_min(1e-300)

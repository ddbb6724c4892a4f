"""The rule that gives the derivative by an operation's output, from its weight gradient and its input.

The gradient of one output channel's weights is ``sum over places of patch x cotangent``: linear in that channel's
cotangents at all ``N`` output places, with the same patches of the input for every channel. In a bottleneck it hands
the derivative from the convolution where the taps were on to the block's sum, and from there to the skip.

Rank: ``N <= k^2 C_in``, and patches that are independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph import Node
from ..kinds import Convolution, Linear
from ..layers import relative, rounding, sizes
from ..refusals import Refused, Why
from .equations import LARGEST_MATRIX, MOST_PLACES, operations_of
from .knowledge import Knowledge, Known
from .rule import Derived, Setting

RULE = "output derivative"

# How much longer than the list of unknowns the list of equations must be.
_OVERDETERMINED = 1.02
# Solutions with another input within its error: with few places one may be lucky.
_AGAIN = 3
# A normal matrix with such a ratio between its pivots determines nothing.
_SINGULAR = 1e-6


@dataclass(frozen=True)
class SolvedDerivative:
    """Of some output channels."""

    values: Tensor
    """``(place, channel)``."""
    deviation: Tensor
    """Of the errors."""
    misfit: float
    """What they leave of the gradient, relative."""


def output_derivative(setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
    """Derivatives by outputs of convolutions and linear layers whose inputs are known."""
    for node in setting.graph.nodes:
        if node.name in known.arriving or not isinstance(node.kind, Convolution | Linear):
            continue
        entering = known.complete(node.inputs[0])
        if entering is None:
            continue
        found = setting.effort.once(RULE, node.name, (entering,), partial(_attempt, setting, known, node, entering))
        if found is not None:
            yield found


def _attempt(setting: Setting, known: Knowledge, node: Node, entering: Known) -> Derived | Refused | None:
    """None where there are too few equations, or they are not of a form that is solved."""
    gradient, patches = setting.gradient(node.name, "weight"), patches_of(node, entering.values)
    if gradient is None or patches is None or not determine(patches):
        return None
    if not setting.effort.affords((1 + _AGAIN) * operations_of(len(patches), patches.shape[1], node.shape[0])):
        return Refused(RULE, node.name, Why.COST, places=len(patches))
    found = solve_derivative(patches, gradient)
    if found is None:
        return Refused(RULE, node.name, Why.PATCHES, places=len(patches))
    values, spread = (_maps(one, (setting.image_count, *node.shape)) for one in (found.values, found.deviation))
    for seed in range(_AGAIN):
        shaken = patches_of(node, entering.shaken(seed))
        again = None if shaken is None else solve_derivative(shaken, gradient)
        if again is not None:
            moved = _maps(again.values, tuple(values.shape)) - values
            spread = spread.maximum(sizes(moved).reshape(-1, *(1 for _ in node.shape)))
    everywhere = torch.ones_like(values, dtype=torch.bool)
    derivative = known.solved(Known(values, everywhere, spread, RULE))
    worst = max(float(derivative.error.max()), found.misfit)
    if not worst <= setting.tolerance:
        return Refused(RULE, node.name, Why.INEXACT, error=worst)
    return Derived(RULE, node.name, known.with_arriving(node.name, derivative), {"misfit": found.misfit})


def determine(patches: Tensor) -> bool:
    """Whether patches, one row each, are few enough for their derivatives to follow."""
    return patches.shape[1] >= _OVERDETERMINED * len(patches)


def patches_of(node: Node, values: Tensor) -> Tensor | None:
    """What each output place sees, one row each; None where it is too much."""
    if isinstance(node.kind, Convolution):
        size = values.shape[1] * node.kind.kernel[0] * node.kind.kernel[1]
        places = len(values) * node.shape[1] * node.shape[2]
        if node.kind.groups != 1 or places > MOST_PLACES or places * size > LARGEST_MATRIX:
            return None
    elif values.dim() != 2:
        return None
    kind = node.kind
    if not isinstance(kind, Convolution):
        return values
    return F.unfold(values, kind.kernel, kind.dilation, kind.padding, kind.stride).transpose(1, 2).flatten(0, 1)


def solve_derivative(patches: Tensor, weight_gradient: Tensor) -> SolvedDerivative | None:
    """The derivatives by some output channels, from their rows of the weight gradient; None where it is singular."""
    given = weight_gradient.detach().cpu().double().flatten(1).T
    normal = patches @ patches.T
    factor, failed = torch.linalg.cholesky_ex(normal)
    pivots = factor.diagonal()
    if int(failed) or not bool(pivots.min() > _SINGULAR * pivots.max()):
        return None
    values = torch.cholesky_solve(patches @ given, factor)
    values = values + torch.cholesky_solve(patches @ (given - patches.T @ values), factor)
    left = given - patches.T @ values
    size = given.square().mean(dim=0).sqrt()
    noise = left.square().mean(dim=0).sqrt().maximum(rounding(weight_gradient) * size)
    equations, places = given.shape[0], len(patches)
    variance = torch.cholesky_inverse(factor).diagonal().clamp_min(0) * equations / max(equations - places, 1)
    return SolvedDerivative(values, variance.sqrt()[:, None] * noise, relative(left, given))


def _maps(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    if len(shape) == 2:
        return rows
    batch, channels, height, width = shape
    return rows.reshape(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()

"""The same equations, each counted by how well its right side is known.

In a weight delta every entry is off by the rounding of its own weight, and weights near zero are rounded a thousand
times finer than the largest: the entries there say most. What the derivatives themselves are off by adds to all entries
of an output channel alike; how much shows in what a solution leaves. Every input channel then has a normal matrix of
its own, which only the entries known best enter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Equations of each channel that are used, in unknowns; the others are known far less well.
_USED = 3
# Channels that tell what derivatives are off by, from so many on to nearly twice as many, and how often they are asked.
_ASKED, _ROUNDS = 12, 4
# Bytes that the equations of the channels which are solved together may take.
_TOGETHER = 200_000_000


@dataclass(frozen=True)
class WeightedSolution:
    """Of all input channels."""

    values: Tensor
    """``(place, channel)``."""
    misfit: float
    """What it leaves of the right sides, relative, both counted as they were for it."""
    deviation: Tensor
    """``(place, channel)``: of the error."""
    left: Tensor
    """``(equation,)``: what is left of all entries of one equation, used or not, in deviations, root mean square."""


def operations_weighted(places: int, rows: int, channels: int) -> float:
    """Of one solution."""
    return (channels + len(_asked(channels)) * _ROUNDS) * (2.0 * places**2 * min(rows, _USED * places) + places**3 / 3)


def solve_weighted(matrix: Tensor, given: Tensor, deviation: Tensor) -> WeightedSolution | None:
    """Least squares channel by channel; None where the equations known best leave something open.

    Args:
        matrix: ``(equation, place)``, the same for each channel.
        given: ``(equation, channel)``.
        deviation: Of each of these, from what is known of their rounding.
    """
    asked = torch.tensor(_asked(given.shape[1]))
    common = _common(matrix, given[:, asked], deviation[:, asked])
    if common is None:
        return None
    spread = (deviation.square() + common**2).sqrt()
    found = _solved(matrix, given, spread)
    if found is None:
        return None
    values, noise, left_used, given_used = found
    size = noise.square().mean().sqrt()
    free = max(given.shape[1] * (min(len(given), _USED * matrix.shape[1]) - matrix.shape[1]), 1)
    more = max(left_used / free**0.5, 1.0)
    of_place, of_channel = noise.square().mean(dim=1).sqrt(), noise.square().mean(dim=0).sqrt()
    left = ((given - matrix @ values) / spread).square().mean(dim=1).sqrt()
    errors = more * of_place[:, None] * of_channel / size.clamp_min(1e-300)
    return WeightedSolution(values, left_used / max(given_used, 1e-300), errors, left)


def _asked(channels: int) -> range:
    return range(0, channels, max(1, channels // _ASKED))


def _common(matrix: Tensor, given: Tensor, deviation: Tensor) -> float | None:
    """Deviation of what all entries are off by beside their rounding."""
    places, common = matrix.shape[1], float(deviation.square().mean().sqrt())
    used = min(len(given), _USED * places)
    for _ in range(_ROUNDS):
        spread = (deviation.square() + common**2).sqrt()
        found = _solved(matrix, given, spread)
        if found is None:
            return None
        which = spread.topk(used, dim=0, largest=False).indices
        left = (given - matrix @ found[0]).gather(0, which)
        weight = spread.gather(0, which).pow(-4)
        excess = left.square() * used / max(used - places, 1) - deviation.gather(0, which).square()
        common = max(float((weight * excess).sum() / weight.sum()), 0.0) ** 0.5
    return common


def _solved(matrix: Tensor, given: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, float, float] | None:
    """Values, the same of noise alone, and lengths of what is left and of the right sides, in deviations."""
    places, channels = matrix.shape[1], given.shape[1]
    used = min(len(given), _USED * places)
    which = spread.topk(used, dim=0, largest=False).indices.T
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(channels, used, 1, generator=random, dtype=given.dtype)
    together = max(1, _TOGETHER // (8 * used * places))
    parts, left, length = list[Tensor](), 0.0, 0.0
    for some in torch.split(torch.arange(channels), together):
        scale = 1 / spread.T[some].gather(1, which[some])
        rows = matrix[which[some].flatten()].reshape(len(some), used, places) * scale[..., None]
        right = torch.cat([(given.T[some].gather(1, which[some]) * scale)[..., None], noise[some]], dim=2)
        factor, failed = torch.linalg.cholesky_ex(rows.mT @ rows)
        if bool(failed.any()) or not bool(torch.isfinite(factor).all()):
            return None
        solution = torch.cholesky_solve(rows.mT @ right, factor)
        # Once more for what rounding left: the condition of the normal matrix is that of the equations squared.
        solution = solution + torch.cholesky_solve(rows.mT @ (right - rows @ solution), factor)
        left += float((right - rows @ solution)[..., 0].square().sum())
        length += float(right[..., 0].square().sum())
        parts.append(solution)
    both = torch.cat(parts)
    return both[..., 0].T, both[..., 1].T, left**0.5, length**0.5

"""A convolution's input from its weight gradient, where batch norm on the batch's own statistics stands behind.

With d the derivative behind the batch norm, ``x`` its input about its mean and of variance 1, sigma its deviation and N
the places of the output (see `batch_statistics`), the weight gradient of output channel c is

    (sigma_c / gamma_c) G_c = (d_c - sum(d_c) / N - x_c sum(d_c x_c) / N)^T P

with P the patches of the input that is looked for. Both sums are gradients that were sent. x is known where the
rectifier behind was open, its share elsewhere is small, and sigma is one number for each channel: given both, this is
linear, with one matrix for all input channels.

The scale of the whole input is in none of it: convolution and batch norm do not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..geometry import gradient_matrix
from ..kinds import Convolution, over_channels
from .batch_statistics import Normalised, normalised

# Input channels that deviations are told from, each a random mixture of all.
_MIXTURES = 48
# A normal matrix with such a ratio between its pivots determines nothing.
_SINGULAR = 1e-7


@dataclass(frozen=True)
class Reader:
    """One convolution that reads the value, with the batch norm behind it; output channels that say something."""

    kind: Convolution
    weight: Float[Tensor, "output input row column"]
    eps: float
    gradient: Float[Tensor, "output input row column"]
    """By the weight, divided by the batch norm's scale."""
    rounding: float
    """Relative error of the gradient from the type it was sent in."""
    derivative: Float[Tensor, "image output height width"]
    """Behind the batch norm."""
    shift_sum: Float[Tensor, " output"]
    """Of the derivative."""
    scaled_sum: Float[Tensor, " output"] | None
    """Of the derivative times what is about its mean and of variance 1; None where it was not sent."""
    told: Float[Tensor, "image output height width"]
    """What is about its mean and of variance 1, where it is known."""
    spread: Float[Tensor, "image output height width"]
    """Of its errors."""
    is_told: Bool[Tensor, "image output height width"]
    adds_up: Bool[Tensor, " output"]
    """Whether the derivative has the sum that was sent: where it has not, a unit is on the wrong side."""
    sums_off: tuple[Float[Tensor, " output"], Float[Tensor, " output"]] | None = None
    """Deviations of both sums from the rounding of what was sent; None where that is next to nothing."""

    @property
    def places(self) -> int:
        """Of the output, of all images."""
        return self.derivative.numel() // self.derivative.shape[1]

    @property
    def rows(self) -> int:
        """Equations."""
        return len(self.weight) * prod(self.kind.kernel)

    def of_outputs(self, chosen: Bool[Tensor, " output"]) -> Reader:
        """The equations of some output channels alone."""
        return replace(
            self,
            weight=self.weight[chosen],
            gradient=self.gradient[chosen],
            derivative=self.derivative[:, chosen],
            shift_sum=self.shift_sum[chosen],
            scaled_sum=None if self.scaled_sum is None else self.scaled_sum[chosen],
            told=self.told[:, chosen],
            spread=self.spread[:, chosen],
            is_told=self.is_told[:, chosen],
            adds_up=self.adds_up[chosen],
            sums_off=None if self.sums_off is None else (self.sums_off[0][chosen], self.sums_off[1][chosen]),
        )

    def shaken(self, off: float, spread: Tensor, noise: Callable[[Tensor], Tensor]) -> Reader:
        """All of it as it might be.

        Args:
            off: Relative error of the gradient and of the derivative.
            spread: Of what is told of what enters.
            noise: White noise of variance 1, in the shape of what it is given.
        """
        gradient, derivative = (
            one + off * one.square().mean().sqrt() * noise(one) for one in (self.gradient, self.derivative)
        )
        told = self.told + torch.where(self.is_told, spread * noise(self.told), 0.0)
        found = replace(self, gradient=gradient, derivative=derivative, told=told)
        if self.sums_off is None:
            return found
        by_shift, by_scale = self.sums_off
        scaled = None if self.scaled_sum is None else self.scaled_sum + by_scale * noise(by_scale)
        return replace(found, shift_sum=self.shift_sum + by_shift * noise(by_shift), scaled_sum=scaled)

    def first(self) -> Tensor:
        """What enters the batch norm, about its mean and of variance 1, as far as it is known: where it is not, what
        makes the mean zero."""
        missing = (~self.is_told).double()
        count = missing.sum(dim=(0, 2, 3), keepdim=True).clamp_min(1)
        return self.told - missing * self.told.sum(dim=(0, 2, 3), keepdim=True) / count

    def followed(self, values: Tensor) -> Normalised:
        """What enters the batch norm if these values are the input; as it is known where it is."""
        kind = self.kind
        output = F.conv2d(values, self.weight, None, kind.stride, kind.padding, kind.dilation)
        found = normalised(output, self.eps)
        return replace(found, values=torch.where(self.is_told, self.told, found.values))

    def in_front(self, entering: Tensor) -> Tensor:
        """The derivative by the convolution's output, times sigma over gamma."""
        scaled = self.scaled_sum
        scaled = (self.derivative * entering).sum(dim=(0, 2, 3)) if scaled is None else scaled
        off = over_channels(self.shift_sum, entering) + entering * over_channels(scaled, entering)
        found = self.derivative - off / self.places
        return found - found.mean(dim=(0, 2, 3), keepdim=True)


@dataclass(frozen=True)
class Found:
    """The solution for given statistics."""

    values: Float[Tensor, "place channel"]
    misfit: float
    """What is left of the gradients, relative."""
    left: Float[Tensor, " channel"]
    """Root mean square of what is left of each input channel's equations."""
    off: tuple[Float[Tensor, " _"], ...]
    """Of each convolution, what is left of each output channel's gradient, relative to it or to the median one."""
    amplified: Float[Tensor, " place"]
    """By how much noise of the equations is larger in the values."""


def solve_given(
    readers: Sequence[Reader],
    entering: Sequence[Tensor],
    deviations: Sequence[Tensor] | None,
    size: tuple[int, int],
    levels: Sequence[Tensor],
) -> Found | None:
    """The least-squares solution for what enters the batch norms; None where it is not determined.

    Args:
        readers: Convolutions that read the value.
        entering: What enters each batch norm, about its mean and of variance 1.
        deviations: sigma of each channel; None to find those by which the equations fit best.
        size: Height and width of the value.
        levels: Classes of places whose level is in no equation; it is set to zero.
    """
    weights = [1 / one.gradient.norm() for one in readers]
    fronts = [one.in_front(some) for one, some in zip(readers, entering, strict=True)]
    matrix = torch.cat(
        [gradient_matrix(r.kind, size, front) * w for r, front, w in zip(readers, fronts, weights, strict=True)], dim=1
    )
    given = torch.cat(
        [r.gradient.permute(0, 2, 3, 1).reshape(r.rows, -1) * w for r, w in zip(readers, weights, strict=True)]
    )
    normal = matrix @ matrix.T
    typical = normal.diagonal().mean()
    for level in levels:
        normal += typical / level.sum() * torch.outer(level, level)
    factor, failed = torch.linalg.cholesky_ex(normal)
    pivots = factor.diagonal()
    if int(failed) or not bool(pivots.min() > _SINGULAR * pivots.max()):
        return None
    channel = torch.repeat_interleave(
        torch.arange(sum(len(r.weight) for r in readers)),
        torch.cat([torch.full((len(r.weight),), prod(r.kind.kernel)) for r in readers]),
    )
    sigma = _best_deviations(factor, matrix, given, channel) if deviations is None else torch.cat(list(deviations))
    right = given * sigma[channel, None]
    values = torch.cholesky_solve(matrix @ right, factor)
    values = values + torch.cholesky_solve(matrix @ (right - matrix.T @ values), factor)
    left = right - matrix.T @ values
    free = max(len(right) - len(values), 1)
    inverse = torch.cholesky_inverse(factor).diagonal().clamp_min(0) * len(right) / free
    counts, each = [len(r.weight) for r in readers], [torch.zeros(len(sigma), dtype=left.dtype) for _ in range(2)]
    lefts, lengths = (
        torch.split(sums.index_add_(0, channel, rows.square().sum(dim=1)).sqrt(), counts)
        for sums, rows in zip(each, (left, right), strict=True)
    )
    off = tuple(one / size.maximum(size.median()) for one, size in zip(lefts, lengths, strict=True))
    misfit = float(left.norm() / right.norm().clamp_min(1e-300))
    return Found(values, misfit, left.square().mean(dim=0).sqrt(), off, inverse.sqrt())


def _best_deviations(factor: Tensor, matrix: Tensor, given: Tensor, channel: Tensor) -> Tensor:
    """sigma up to one factor: the lowest eigenvector of what the best input for each leaves of the equations."""
    random = torch.Generator().manual_seed(0)
    mixtures = torch.randn(given.shape[1], min(_MIXTURES, given.shape[1]), generator=random, dtype=given.dtype)
    some = given @ mixtures
    count = int(channel[-1]) + 1
    halves = torch.linalg.solve_triangular(factor, matrix, upper=False)
    shape = (count, len(matrix), some.shape[1])
    parts = torch.zeros(shape, dtype=given.dtype)
    for one in range(count):
        rows = channel == one
        parts[one] = halves[:, rows] @ some[rows]
    explained = parts.flatten(1) @ parts.flatten(1).T
    length = torch.zeros(count, dtype=given.dtype).index_add_(0, channel, some.square().sum(dim=1))
    root = length.sqrt().clamp_min(1e-300)
    left = (torch.diag(length) - explained) / root[:, None] / root
    lowest = torch.linalg.eigh((left + left.T) / 2)[1][:, 0] / root
    lowest = lowest * lowest.sum().sign()
    # One that came out negative is noise of a channel that says little.
    return lowest.maximum(1e-3 * lowest.median().abs())

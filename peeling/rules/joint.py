"""A convolution's input by its weight gradient, its known outputs, and what of it is known already, together.

Where gradients alone are too few, three sets of linear equations add up: the weight gradients (one normal matrix over
places, the same for every channel), the outputs of the convolutions where they are known (behind a rectifier that was
open), and single entries (where a sum behind was open and its other part is known). They are solved for the entries
that are not known by conjugate gradients, with the gradients' normal matrix factored as their
preconditioner. Where the input comes out of a rectifier, no entry may come out below zero (`nonnegative`).

The solution is made twice, the second time from another start with every right side off by its own known error: where
the two are apart, the equations leave something open, or hold it too weakly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from ..conjugate_gradients import conjugate_gradients
from ..kinds import Convolution
from .equations import GradientEquations, normal_equations
from .knowledge import Known
from .nonnegative import FOLLOWED, SETTLED, solve_nonnegative

# Of one solution, at most and at least: with fewer it is not expected to end.
_STEPS, _FEWEST_STEPS = 4000, 600
# Of the operations that are left: one solution may take the first share of them, or so many if that is no more than the
# second.
_SHARE, _FEW, _OF_FEW = 0.1, 3e11, 0.25
# What is added to the diagonal of the preconditioner, as a share of its mean.
_LEAST_PIVOT = 1e-9
# The least deviation of a place, as a share of the usual one.
_LEAST_LOCAL = 0.3
# Noise as large as what is left moves a solution less than one unit on the wrong side that leaves as much.
_STRUCTURED = 2.0
# Two solutions that were not followed to their end are nearer to each other than to the truth, about so many times.
_UNSETTLED = 4.0


@dataclass(frozen=True)
class Outputs:
    """What is known of the output of one convolution that reads the value, its bias taken away."""

    kind: Convolution
    weight: Tensor
    known: Known


@dataclass(frozen=True)
class Joint:
    """The solution, and how far it can be trusted."""

    values: Tensor
    deviation: Tensor
    gradient_misfit: float
    output_misfit: float
    operations: float
    """That were made."""


@dataclass(frozen=True)
class Noises:
    """Root mean square error of each entry of the right sides."""

    by_gradient: list[float]
    by_output: list[float]


class _System:
    """The equations, scaled so that each set has a right side of length 1."""

    def __init__(self, equations: Sequence[GradientEquations], outputs: Sequence[Outputs], shape: tuple[int, ...]):
        self.shape, self.equations, self.outputs = shape, equations, outputs
        self.matrix, self.right = normal_equations(equations)
        self.weights = [1 / (one.known.values * one.known.known).norm().square().clamp_min(1e-300) for one in outputs]

    def maps(self, rows: Tensor) -> Tensor:
        batch, channels, height, width = self.shape
        return rows.reshape(batch, height, width, channels).permute(0, 3, 1, 2)

    def rows(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).reshape(-1, self.shape[1])

    def forward(self, one: Outputs, values: Tensor) -> Tensor:
        kind = one.kind
        return F.conv2d(values, one.weight, None, kind.stride, kind.padding, kind.dilation) * one.known.known

    def back(self, one: Outputs, outputs: Tensor, weight: Tensor) -> Tensor:
        kind = one.kind
        return conv2d_input(list(self.shape), weight, outputs, kind.stride, kind.padding, kind.dilation)  # type: ignore[no-untyped-call]

    def normal(self, values: Tensor) -> Tensor:
        found = self.maps(self.matrix @ self.rows(values))
        for one, weight in zip(self.outputs, self.weights, strict=True):
            found = found + weight * self.back(one, self.forward(one, values), one.weight)
        return found

    def target(self, noises: Noises | None = None) -> Tensor:
        """Of the normal equations; with noises as it might have been instead."""
        random = torch.Generator().manual_seed(0)
        right = self.right
        for equations, noise in zip(self.equations, noises.by_gradient if noises else [], strict=noises is not None):
            off = torch.randn(equations.given.shape, generator=random, dtype=torch.float64)
            right = right + equations.matrix @ (off * noise)
        found = self.maps(right)
        for position, (one, weight) in enumerate(zip(self.outputs, self.weights, strict=True)):
            given = one.known.values * one.known.known
            if noises is not None:
                off = torch.randn(given.shape, generator=random, dtype=torch.float64)
                given = given + off * one.known.deviation.clamp_min(noises.by_output[position]) * one.known.known
            found = found + weight * self.back(one, given, one.weight)
        return found

    def noises(self, values: Tensor, free: int) -> Noises:
        """What this solution leaves of each right side, as noise of which the unknowns have taken up their share."""
        rows = sum(one.given.numel() for one in self.equations)
        rows += sum(int(one.known.known.sum()) for one in self.outputs)
        share = (rows / max(rows - free, 1)) ** 0.5
        by_gradient, by_output = [], []
        for equations in self.equations:
            left = equations.given - equations.matrix.T @ self.rows(values)
            least = equations.rounding * float(equations.given.square().mean().sqrt())
            by_gradient.append(max(least, share * float(left.square().mean().sqrt())))
        for outputs in self.outputs:
            mask = outputs.known.known
            left = self.forward(outputs, values) - outputs.known.values * mask
            by_output.append(share * float(left.norm()) / max(int(mask.sum()), 1) ** 0.5)
        return Noises(by_gradient, by_output)

    def factor(self) -> Tensor:
        """Cholesky factor of the gradients' normal matrix, with what the known outputs add to it at the mean."""
        by_output = torch.zeros(self.shape, dtype=torch.float64)
        for one, weight in zip(self.outputs, self.weights, strict=True):
            by_output += weight * self.back(one, one.known.known.double(), one.weight.square())
        added = by_output.mean(dim=1).flatten()
        least = _LEAST_PIVOT * float(self.matrix.diagonal().mean())
        return torch.linalg.cholesky(self.matrix + torch.diag(added.clamp_min(least)))


def joint_operations(places: int, channels: int, outputs: Sequence[Outputs]) -> float:
    """Of one step, to within a factor of two."""
    by_output = sum(4.0 * one.known.values.numel() * one.weight[0].numel() for one in outputs)
    return 6.0 * places**2 * channels + by_output


def operations_allowed(left: float, places: int, channels: int, outputs: Sequence[Outputs]) -> float | None:
    """Of each of the two solutions; None where they would end too early.

    Args:
        left: Operations that may still be made.
        places: Of all images together.
        channels: Of the input.
        outputs: Known entries of convolutions' outputs.
    """
    each = joint_operations(places, channels, outputs)
    allowed = min(_STEPS * each, max(_SHARE * left, min(_FEW, _OF_FEW * left)))
    return allowed if allowed >= _FEWEST_STEPS * each else None


def solve_jointly(
    equations: Sequence[GradientEquations],
    outputs: Sequence[Outputs],
    before: Known,
    rectified: bool,
    operations: float,
) -> Joint:
    """The input of the convolutions that these equations are of.

    Args:
        equations: By weight gradients; at least one.
        outputs: Known entries of convolutions' outputs.
        before: What is known of the input.
        rectified: Whether it comes out of a rectifier.
        operations: That each of the two solutions may take (`operations_allowed`).
    """
    system = _System(equations, outputs, tuple(before.values.shape))
    fixed = before.values * before.known
    free = ~before.known
    factor, each = system.factor(), joint_operations(len(system.matrix), system.shape[1], outputs)
    solve = partial(_solution, system, free=free, rectified=rectified, factor=factor, steps=int(operations / each))
    first = solve(system.target(), fixed, torch.zeros_like(fixed))
    values = first.values
    noises = system.noises(values, int((free & ~first.shut).sum()))
    random = torch.Generator().manual_seed(1)
    shaken = fixed + torch.randn(fixed.shape, generator=random, dtype=torch.float64) * before.deviation * before.known
    moved = torch.randn(fixed.shape, generator=random, dtype=torch.float64) * values.std() * free
    # Which units are shut is found out anew too: where nothing holds an entry, the first start made it zero.
    other = solve(system.target(noises), shaken, moved)
    apart = (_STRUCTURED if first.settled and other.settled else _UNSETTLED) * (other.values - values)
    local = apart.square().mean(dim=1, keepdim=True).sqrt()
    usual = apart.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    deviation = local.maximum(_LEAST_LOCAL * usual).expand_as(values)
    left = torch.cat([one.given - one.matrix.T @ system.rows(values) for one in equations])
    given = torch.cat([one.given for one in equations])
    missed = [
        float((system.forward(one, values) - one.known.values * one.known.known).norm() * weight.sqrt())
        for one, weight in zip(outputs, system.weights, strict=True)
    ]
    made = each * (first.made + other.made)
    return Joint(values, deviation, float(left.norm() / given.norm()), max(missed, default=0.0), made)


@dataclass(frozen=True)
class _Solution:
    """Of the equations, as far as it was followed."""

    values: Tensor
    """All entries."""
    shut: Tensor
    """Free ones that are zero."""
    settled: bool
    """Whether it was followed to its end."""
    made: int
    """Steps."""


def _solution(
    system: _System,
    target: Tensor,
    fixed: Tensor,
    start: Tensor,
    *,
    free: Tensor,
    rectified: bool,
    factor: Tensor,
    steps: int,
) -> _Solution:
    def preconditioned(values: Tensor) -> Tensor:
        return system.maps(torch.cholesky_solve(system.rows(values), factor))

    right = free * (target - system.normal(fixed))
    if rectified:
        found = solve_nonnegative(system.normal, right, free, start, preconditioned, steps)
        return _Solution(fixed + found.solution, found.shut, found.settled, found.made)
    made = conjugate_gradients(
        lambda values: free * system.normal(values),
        right,
        steps,
        SETTLED,
        start,
        lambda values: free * preconditioned(values),
    )
    settled = bool(made.left <= FOLLOWED**2 * made.wanted)
    return _Solution(fixed + made.solution, torch.zeros_like(free), settled, made.made)

"""A convolution's input by weight gradients and known outputs together, behind them batch norm on batch statistics.

With x the input, P(x) its patches, and for each output channel ``u = P(x) w`` with mean m, deviation sigma and ``z = (u
- m) / sigma`` over all places of the batch, are told

    gradients:  F(z)^T P(x) - sigma G = 0,   F(z) = d - (sum(d) + z sum(d z)) / N about its mean
    outputs:    z - t = 0                    wherever the rectifier behind was open

with d the derivative behind the batch norm, both sums and G (over the scale) as they were sent, and t what is known of
z (see `statistics_equations`). In F z is t where that is known. All of it is smooth in x: the statistics are no
unknowns, but follow from it. So few steps of Gauss and Newton's are needed, each by conjugate gradients, with

    dz = (du - mean(du) - z mean(z du)) / sigma,     dsigma = mean(z du),     du = P(dx) w

The first step, from nothing, takes z for what is known of it and sigma for that of white noise; then all is linear.

Preconditioner: the gradients' normal matrix over places, one for all input channels, with what the outputs hold at the
mean on its diagonal. With a stride, places of one residue share no gradient's equation with others, and it is inverted
for each by itself. Where gradients are just as many as unknowns it has values near zero, and known outputs hold those.

The scale of x is in none of it but for eps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..conjugate_gradients import conjugate_gradients
from ..geometry import gradient_matrix
from .statistics_equations import Reader
from .statistics_near import NearInput

STEPS, ITERATIONS = 8, 80
"""Of Gauss and Newton, and of conjugate gradients in each, at most."""
# What conjugate gradients leave, relative, where they end.
_SETTLED = 1e-3
# Parts of a step that are tried in turn.
_PARTS = (1.0, 0.4, 0.15)
# Steps end where one leaves more than this share of what there was.
_FALLS = 0.7
# What the outputs add to the preconditioner's diagonal, at least, as a share of its mean.
_LEAST_PIVOT = 1e-6
# Products of patches with a weight or a derivative in one iteration.
_PRODUCTS = 6.0


@dataclass(frozen=True)
class Together:
    """An input that obeys all of it as well as was found."""

    values: Float[Tensor, "image channel height width"]
    gradient_misfit: float
    """What it leaves of the gradients, relative."""
    output_misfit: float
    """And of the known outputs."""
    off: tuple[Float[Tensor, " _"], ...]
    """Of each convolution, what is left of each output channel's gradient, relative to it or to the median one."""
    iterations: int
    """Of conjugate gradients."""

    @property
    def misfit(self) -> float:
        """The larger one."""
        return max(self.gradient_misfit, self.output_misfit)


def solve_together(
    readers: Sequence[Reader],
    heard: Sequence[Bool[Tensor, " _"]],
    shape: tuple[int, ...],
    start: Float[Tensor, "image channel height width"] | None = None,
    steps: int = STEPS,
    enough: float = 0.0,
) -> Together:
    """The input of these convolutions.

    Args:
        readers: Convolutions that read the value.
        heard: Of each its output channels whose gradient counts; known outputs count in all.
        shape: Of the value, with the images.
        start: Near it, of the right scale; None to begin from nothing, with a root mean square of 1.
        steps: Of Gauss and Newton, at most.
        enough: A misfit at which they end.
    """
    iterations, scale = 0, 1.0
    if start is None:
        start, iterations = _Near(readers, heard, shape, None).step()
    else:
        scale = float(start.square().mean().sqrt())
    near = _Near(readers, heard, shape, _of_size(start, scale))
    for _ in range(steps):
        move, made = near.step()
        iterations += made
        last, tried = near, (_of_size(near.values + part * move, scale) for part in _PARTS)
        following = (_Near(readers, heard, shape, one) for one in tried)
        near = next((one for one in following if one.square < last.square), last)
        if not near.square <= _FALLS**2 * last.square or max(near.misfits()) <= enough:
            break
    off = tuple(one.off() for one in near.ones)
    return Together(near.values, *near.misfits(), off, iterations)


def joint_operations(readers: Sequence[Reader], channels: int, places: int) -> float:
    """Floating-point operations of one iteration of conjugate gradients, to within a factor of two.

    Args:
        readers: Convolutions that read the value.
        channels: Of the value.
        places: Of the value, of all images.
    """
    by_reader = sum(2.0 * one.places * one.rows * channels for one in readers)
    return _PRODUCTS * by_reader + 2.0 * places**2 / prod(_strides(readers)) * channels


def step_operations(readers: Sequence[Reader], channels: int, places: int) -> float:
    """Floating-point operations of one step beside its conjugate gradients: the preconditioner, and the equations at
    the parts of the step that are tried, to within a factor of two.

    Args:
        readers: Convolutions that read the value.
        channels: Of the value.
        places: Of the value, of all images.
    """
    classes = prod(_strides(readers))
    each = places / classes
    normal = sum(2.0 * each**2 * one.rows for one in readers)
    tried = len(_PARTS) * _PRODUCTS * sum(2.0 * one.places * one.rows * channels for one in readers)
    return classes * (normal + each**3) + tried


def _of_size(values: Tensor, scale: float) -> Tensor:
    return values * (scale / float(values.square().mean().sqrt().clamp_min(1e-300)))


def _strides(readers: Sequence[Reader]) -> tuple[int, int]:
    """Places whose distance is no multiple of these share no equation of any gradient."""
    rows, columns = (gcd(*(one.kind.stride[axis] for one in readers)) for axis in (0, 1))
    return rows, columns


class _Near:
    """All equations near an input; near nothing they are those of the first step."""

    def __init__(
        self, readers: Sequence[Reader], heard: Sequence[Tensor], shape: tuple[int, ...], values: Tensor | None
    ) -> None:
        self._shape, self._size = shape, (shape[2], shape[3])
        self._strides = _strides(readers)
        self.values = torch.zeros(shape, dtype=torch.float64) if values is None else values
        self.ones = [NearInput(reader, some, values) for reader, some in zip(readers, heard, strict=True)]
        self._left = [one.left() for one in self.ones]
        self.square = sum(float(part.square().sum()) for pair in self._left for part in pair)

    def misfits(self) -> tuple[float, float]:
        """Of gradients and of outputs, each where it is most."""
        gradients, outputs = zip(*((float(one.norm()), float(other.norm())) for one, other in self._left), strict=True)
        return max(gradients), max(outputs)

    def step(self) -> tuple[Tensor, int]:
        """The move that would end it, were all of it linear, and the iterations that it took."""
        rough = [one.to(torch.float32) for one in self.ones]

        def normal(move: Tensor) -> Tensor:
            return torch.stack([one.back(one.forth(move), self._size) for one in rough]).sum(dim=0)

        parts = zip(self.ones, self._left, strict=True)
        right = -torch.stack([one.back(pair, self._size) for one, pair in parts]).sum(dim=0)
        # In the end it is as small as float64 allows: in float32 it is of length 1.
        length = float(right.norm().clamp_min(1e-300))
        found = conjugate_gradients(
            normal, (right / length).float(), ITERATIONS, _SETTLED, precondition=self._preconditioner()
        )
        return found.solution.double() * length, found.made

    def _preconditioner(self) -> Callable[[Tensor], Tensor]:
        """Nearly the inverse of the normal matrix, in float32."""
        count, channels, height, width = self._shape
        held = torch.stack([one.held_by_outputs(self._size) for one in self.ones]).sum(dim=0).flatten().float()
        matrices = [gradient_matrix(one.reader.kind, self._size, one.heard_derivative()).float() for one in self.ones]
        number = torch.arange(count * height * width).reshape(count, height, width)
        inverses, (rows, columns) = list[tuple[Tensor, Tensor]](), self._strides
        for some in (number[:, i::rows, j::columns].flatten() for i in range(rows) for j in range(columns)):
            here = torch.stack([part @ part.T for part in (one[some] for one in matrices)]).sum(dim=0)
            # Places that no equation sees keep what they began with.
            least = max(_LEAST_PIVOT * float(here.diagonal().mean()), 1e-30)
            here += torch.diag(held[some].clamp_min(least))
            factor, failed = torch.linalg.cholesky_ex(here)
            diagonal = here.diagonal().clamp_min(least)
            inverse = torch.diag(1 / diagonal) if int(failed) else torch.cholesky_inverse(factor)
            inverses.append((some, inverse))

        def preconditioned(values: Tensor) -> Tensor:
            before = values.permute(0, 2, 3, 1).reshape(-1, channels)
            after = torch.empty_like(before)
            for some, inverse in inverses:
                after[some] = inverse @ before[some]
            return after.reshape(count, height, width, channels).permute(0, 3, 1, 2)

        return preconditioned

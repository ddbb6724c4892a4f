"""One convolution or linear layer whose input is looked for: what is known of it, and how errors are told."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..capture import sent_type

# Up to this estimated error units that are shut show how large errors are; those of a defence spare some units.
SHOWN_UP_TO = 1e-3
LARGEST = 5.0
"""The largest error of an activation, in deviations."""
SETTLED = 30.0
"""Misfit of a solution, in roundings of the gradient, at which no unit of the ReLU is looked for."""


@dataclass(frozen=True)
class Equations:
    """What the input of one layer has to obey. All in float64 on the CPU but the gradient; images in front."""

    input_shape: tuple[int, ...]
    """With the images."""
    weight: Tensor
    weight_gradient: Tensor
    """Captured, in the type it was sent in."""
    cotangent: Tensor
    """Derivative of the loss that the gradient is of, by the layer's output."""
    outputs: Tensor
    """The layer's output without its bias, where known. The solution must lead there."""
    known: Tensor
    """Mask of ``outputs``."""
    error: float
    """Estimated relative error of ``outputs``."""
    unmasked: Tensor
    """The cotangent if every unit of the ReLU behind were open."""
    doubtful: Tensor
    """Units of it that may be open or shut."""


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
    """The relative error that a gradient has at least, from the type in which it was sent."""
    kind = torch.finfo(sent_type(gradient))
    # Numbers too small for all their digits are off by a fixed amount.
    smallest = kind.eps * kind.smallest_normal / max(size(gradient.detach().double()), 1e-300)
    return max(1e-9, kind.eps / 2, smallest / 2)


def spread_error(activations: Tensor, error: float) -> Tensor:
    """The largest absolute error of each activation where a relative error is spread evenly over all of them."""
    return torch.full_like(activations, LARGEST * error * size(activations))


def size(values: Tensor) -> float:
    """Root mean square."""
    return float(values.square().mean().sqrt())


def sizes(values: Float[Tensor, "image ..."]) -> Float[Tensor, " image"]:
    """Root mean square of each image."""
    return values.flatten(1).square().mean(dim=1).sqrt()


def relative(difference: Tensor, reference: Tensor) -> float:
    """Length of a difference, as a share of the other."""
    return float(difference.norm() / reference.norm().clamp_min(1e-300))


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results of one computation in the same type are equal but for rounding."""
    ours, theirs = ours.detach(), theirs.detach()
    allowed = float(torch.finfo(ours.dtype).eps) ** 0.5
    return bool((ours - theirs).norm() <= allowed * torch.maximum(ours.norm(), theirs.norm()))

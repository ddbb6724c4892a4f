"""The rows of a pointwise convolution's input, each up to its length and without an order, by the units that are shut.

Geometrically these are the images of `capture.labels.unmixing`, whose linear programs are used: places stand for images
and channels for units. One row after another is the non-negative vector of the gradient's row space that is zero at so
many units that nothing else is zero at all of them. That last part is the check: where a mixture of two rows were taken
for one, the space of what is zero at its zeros would have two dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...capture.labels.unmixing import find_facets, polish_facet
from ..refusals import Why
from .space import row_space

MOST_PLACES = 64
"""Beyond this many places the linear programs take minutes."""
# Channels whose gradient is below this share of the largest one's say nothing.
_DEAD = 1e-6
# Noise over signal, in the weakest direction, above which nothing is looked for.
_LARGEST_NOISE = 0.02
# Rows whose matrix is worse conditioned are one place twice.
_LARGEST_CONDITION = 1e6
# A row is alone where the second least moment of its zeros is so many times the least one, or above the noise by it.
_ALONE = 10.0
# Entries below this share of a row's root mean square, or so many of the row's own errors, are zero.
_SHUT, _ERRORS = 1e-5, 4.0


@dataclass(frozen=True)
class Rows:
    """Every place's input and the derivative by its output: ``cotangents.T @ inputs`` is the weight gradient."""

    inputs: Float[Tensor, "place input"]
    """Never negative; of length 1."""
    cotangents: Float[Tensor, "place output"]
    shut: Float[Tensor, " place"]
    """Below this an entry of the inputs is zero."""
    error: Float[Tensor, " place"]
    """Estimated, relative, of each row."""
    noise: float
    """Over signal, in the weakest direction: of the gradient's singular values the one behind the places over the last
    of theirs."""
    zeros: float
    """Least share of zeros that a row has."""
    alone: float
    """Least ratio of the two least moments over a row's zeros: were a row a mixture, it would be 1."""


@dataclass(frozen=True)
class NoRows:
    """There are none."""

    why: Why


def find_rows(weight_gradient: Float[Tensor, "output input *ones"], places: int) -> Rows | NoRows:
    """All rows, or why there are none.

    Args:
        weight_gradient: As captured, of a pointwise convolution whose input comes out of a rectifier.
        places: Of the whole batch.
    """
    gradient = weight_gradient.detach().cpu().double().flatten(1)
    size = gradient.norm(dim=0)
    live = size > _DEAD * size.max()
    space = row_space(weight_gradient.detach().flatten(1)[:, live.to(weight_gradient.device)], places)
    if space is None or not space.noise < _LARGEST_NOISE:
        return NoRows(Why.RANK)
    basis, noise = space.basis, space.noise
    apart = _single(basis) if places == 1 else _apart(basis, noise)
    if apart is None:
        return NoRows(Why.ALIKE)
    mixing, left = apart
    if not float(torch.linalg.cond(mixing)) < _LARGEST_CONDITION:
        return NoRows(Why.ALIKE)
    found = mixing @ basis
    shut = (_ERRORS * left).maximum(_SHUT * found.square().mean(dim=1).sqrt())
    alone = _alone(basis, found, shut)
    if places > 1 and not alone > _ALONE:
        return NoRows(Why.ALIKE)
    inputs = gradient.new_zeros(places, gradient.shape[1])
    inputs[:, live] = torch.where(found > shut[:, None], found, 0.0)
    span = inputs.norm(dim=1, keepdim=True)
    inputs, shut = inputs / span, shut / span[:, 0]
    cotangents = torch.linalg.lstsq(inputs.T, gradient.T).solution
    error = space.floor * (mixing / space.moments).norm(dim=1) / span[:, 0]
    zeros = float((inputs == 0).double().mean(dim=1).min())
    return Rows(inputs, cotangents, shut, error.maximum(left * live.sum() ** 0.5), noise, zeros, alone)


def _single(basis: Tensor) -> tuple[Tensor, Tensor]:
    """Of one place only the sign is open; its zeros are no channels that live."""
    return basis.sum().sign().reshape(1, 1), basis.new_zeros(1)


def _apart(basis: Float[Tensor, "place unit"], noise: float) -> tuple[Tensor, Tensor] | None:
    """What takes the basis to rows, and what is left of each row at its zeros, root mean square."""
    facets = find_facets(basis, noise)
    if facets is None:
        return None
    polished = [polish_facet(basis, facet @ basis, noise) for facet in facets]
    left = torch.tensor([error for _, error in polished], dtype=torch.float64)
    return torch.stack([row for row, _ in polished]), left


def _alone(basis: Float[Tensor, "place unit"], found: Float[Tensor, "place unit"], shut: Tensor) -> float:
    """Least ratio of the second least to the least singular value of the basis at a row's zeros."""
    if len(basis) == 1:
        return float("inf")
    ratios = []
    for row, width in zip(found, shut, strict=True):
        least = torch.linalg.svdvals(basis[:, row < width]).flip(0)
        ratios.append(float(least[1] / least[0].clamp_min(1e-300)) if len(least) == len(basis) else 0.0)
    return min(ratios)

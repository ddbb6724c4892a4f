"""The contrast of a batch that batch norm on the batch's own statistics hides.

Where the images enter a convolution without a bias and such a batch norm, ``f x`` has the same features for every
factor f, but for what eps leaves: of a batch as the model is given it, only the shape is determined. Pixels that are
8-bit values tell f: it is the one by which all of them come near multiples of 1/255. By chance none does so, and the
best of all factors stands out among the others or is not believed.

Where none stands out, photos are taken to use their range: of a batch some pixels are nearly black or white, so that
the widest contrast that keeps pixels in their range is about the true one, and no less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .places import Cut

_LEVELS = 255.0
# The features of a batch of so much more contrast differ by less than this, relative, where contrast is hidden.
_MORE, _SAME = 1.1, 5e-3
# Factors that are tried: from this share of the largest that keeps pixels in their range, in steps so fine that no
# pixel moves by more than this share of a level; pixels that may be out of the range by so many levels.
_LEAST, _STEP, _OUTSIDE = 0.2, 0.1, 1.0
# Pixels that the remainders are read off, at once and again for the best; and the share of them that may be out of the
# range.
_FEW, _MANY, _ALLOWED = 4000, 40_000, 1e-3
# Remainders about as small as these, as a share of those of chance; and how many deviations of the others' below them.
_CLEAR, _DEVIATIONS = 0.6, 8.0
# Factors beside the best one that are the same.
_BESIDE = 30


@dataclass(frozen=True)
class Contrast:
    """What the 8-bit grid says."""

    factor: float
    """By which the images as the model is given them are to be multiplied."""
    cost: float
    """Mean square remainder, over that of chance."""
    typical: float
    """The same at other factors: their median."""


def hides_contrast(cut: Cut, images: Float[Tensor, "image channel height width"]) -> bool:
    """Whether the features of a batch say next to nothing of its contrast.

    Args:
        cut: With the network in front.
        images: As the model is given them.
    """
    if not cut.is_coupled:
        return False
    forward = cut.forward(torch.float64, torch.device("cpu"))
    with torch.no_grad():
        once, more = forward(images.double().cpu()), forward(_MORE * images.double().cpu())
    return all(float((one - other).norm()) <= _SAME * float(one.norm()) for one, other in zip(once, more, strict=True))


def widest_contrast(
    images: Float[Tensor, "image channel height width"], lowest: Tensor, highest: Tensor, outside: float = _ALLOWED
) -> float:
    """The factor at which all pixel values but a share reach the ends of their range and no farther; 1 where no value
    tells one, as of a batch that is all zero.

    Args:
        images: As the model is given them, up to one factor.
        lowest: What black is to the model, ``(channel, 1, 1)``.
        highest: What white is.
        outside: The share of values that may lie beyond: more where images are noisy.
    """
    ends = torch.where(images > 0, highest.to(images), lowest.to(images))
    # What no factor brings back, as below a black that is zero, tells nothing.
    room = torch.where(ends * images > 0, ends / images, torch.inf).flatten()
    telling = room[room.isfinite()]
    if not len(telling):
        return 1.0
    return float(telling.kthvalue(min(len(telling), 1 + int(outside * len(room)))).values)


def widest_error(images: Float[Tensor, "image channel height width"], lowest: Tensor, highest: Tensor) -> float:
    """By how much images of the widest contrast may be off, relative to the true ones: of images in fog, at night, or
    of one colour that is nearly the mean, the contrast is far less, down to where no pixel is an 8-bit level from it.

    Args:
        images: As the model is given them, at the widest contrast.
        lowest: What black is to the model, ``(channel, 1, 1)``.
        highest: What white is.
    """
    levels = _LEVELS * images.abs() / (highest - lowest).to(images)
    return max(0.0, float(levels.max()) - 1)


def contrast_by_grid(
    images: Float[Tensor, "image channel height width"], lowest: Tensor, highest: Tensor
) -> Contrast | None:
    """The factor by which the pixels come nearest to 8-bit values; None where none stands out.

    Args:
        images: As the model is given them, up to one factor.
        lowest: What black is to the model, ``(channel, 1, 1)``.
        highest: What white is.
    """
    slope = (_LEVELS * images.double() / (highest - lowest)).flatten()
    offset = (_LEVELS * -lowest / (highest - lowest)).double().expand_as(images).flatten()
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(slope), generator=random)
    slope, offset = slope[order[:_MANY]], offset[order[:_MANY]]
    most = _largest(slope, offset)
    if not math.isfinite(most) or not most > 0:
        return None
    count = int((1 - _LEAST) * most * float(slope.abs().max()) / _STEP) + 2
    factors = torch.linspace(_LEAST * most, most, count, dtype=torch.float64)
    costs = _costs(slope[:_FEW], offset[:_FEW], factors)
    best = int(costs.argmin())
    others = torch.cat([costs[: max(0, best - _BESIDE)], costs[best + _BESIDE :]])
    if len(others) < 2:
        return None
    typical, spread = float(others.median()), float(others.std())
    step = float(factors[1] - factors[0])
    near = float(factors[best]) + torch.linspace(-2, 2, 401, dtype=torch.float64) * step
    finer = _costs(slope, offset, near)
    cost = float(finer.min())
    if not (cost <= _CLEAR * typical and cost <= typical - _DEVIATIONS * spread):
        return None
    return Contrast(float(near[int(finer.argmin())]), cost, typical)


def _largest(slope: Tensor, offset: Tensor) -> float:
    """The factor at which all pixels but a few are in their range still."""
    room = torch.where(slope > 0, _LEVELS + _OUTSIDE - offset, -_OUTSIDE - offset) / slope
    room = room[torch.isfinite(room)]
    return float(room.quantile(_ALLOWED)) if len(room) else math.inf


def _costs(slope: Tensor, offset: Tensor, factors: Tensor) -> Tensor:
    """Mean square remainder at each factor, over that of chance."""
    found = []
    for some in torch.split(factors, 256):
        levels = offset + some[:, None] * slope
        found.append(12 * (levels - levels.round()).square().mean(dim=1))
    return torch.cat(found)

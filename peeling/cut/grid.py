"""Whether recovered images lie on the 256 levels of an 8-bit file, which is what rounding them rests on.

An image whose error is well under half a step of 1/255 is recovered bit for bit by rounding, if it was an 8-bit file at
the network's size. That it was is seen in the remainders ``255 v - round(255 v)``: an image that was never on this grid
(resized in floating point, drawn, of another scale) has remainders spread over a whole step. Three questions decide:

- Are they nearer than chance? The cost of a scale ``s`` is the root mean square of ``s v - round(s v)`` over that of a
  uniform remainder, ``sqrt(1/12)``: about 1 at a scale that means nothing. At 255 it has to stand out among the costs
  at scales far away. An image of few levels offers few pieces of evidence, and its costs scatter: there each level's
  remainder is one number that by chance is below ``x`` with probability ``2 x``, joined by Fisher's method.
- Is it this scale? A dark image on a grid of 1/254.3 is near one of 1/255 too: no scale close by may fit better.
- Does it fit the stated error? Remainders that are many times as large are no rounding of what is known so well.

Values at 0 and 1 lie on every grid, and are put there by the range of pixels: they say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_LEVELS = 255.0
# Scales without a common factor with 255 that chance is read off, and those close by that must not fit better. Nearer
# ones are not told from an error in contrast, which rounding mends.
_FAR = tuple(scale for scale in torch.linspace(140.7, 370.3, 131).tolist() if abs(scale - _LEVELS) > 5)
_CLOSE = tuple(_LEVELS + side * away for away in torch.linspace(0.25, 5, 96).tolist() for side in (-1, 1))
# Remainders at a scale close by that are smaller than this share of those at 255 speak for that scale.
_BETTER = 0.8
# What chance may have done, as deviations of the costs at scales far away, and as a probability.
_DEVIATIONS, _CHANCE = 6.0, 1e-6
# Costs at scales far away scatter by no less: the fewest values that scatter less would be 10,000.
_SCATTER = 0.01
# A stated error is at least a tenth of the true one; below this share of a step nothing is told from rounding.
_UNDERSTATED, _ROUNDING = 10.0, 1e-3
# A value farther off the grid, in steps, may belong to the level beside.
_UNSURE = 0.25
# The share of sure values that an image on the grid has at least.
_MOSTLY = 0.5
# Values that costs are read off.
_ENOUGH = 20_000


@dataclass(frozen=True)
class GridEvidence:
    """What the remainders of each image say."""

    on_grid: Bool[Tensor, " image"]
    """Whether the image was an 8-bit one, beyond chance. False also where too few levels are there to tell."""
    share: Float[Tensor, " image"]
    """Of its values, how many are sure to round to the right level: all but those that lie more than a quarter of a
    step off, and as many again that could have come as far as the level beside. 0 for images that are not on the
    grid."""
    cost: Float[Tensor, " image"]
    """Root mean square remainder at 255 levels, over that of chance: 0 on the grid, about 1 off it."""
    other_cost: Float[Tensor, " image"]
    """The median of the same at other scales."""

    @property
    def exact(self) -> Bool[Tensor, " image"]:
        """Of which images it may be said that rounding recovers them bit for bit: on the grid, with all values sure."""
        return self.on_grid & (self.share == 1)


def grid_evidence(
    pixels: Float[Tensor, "image channel height width"], error: Float[Tensor, " image"] | None = None
) -> GridEvidence:
    """The evidence for and against 8-bit images, from a reconstruction alone.

    Args:
        pixels: In [0, 1], not rounded.
        error: Estimated root mean square error of each image, in the same unit; None or infinite where it is not known,
            so that it contradicts nothing.

    Raises:
        ValueError: The pixels are not a batch of images, or the errors not one for each.
    """
    if pixels.dim() != 4:
        raise ValueError(f"pixels of shape {tuple(pixels.shape)}: give a batch, (image, channel, height, width).")
    stated = torch.full((len(pixels),), torch.inf) if error is None else error
    if stated.shape != (len(pixels),):
        raise ValueError(f"errors of shape {tuple(stated.shape)} for {len(pixels)} images: give one for each.")
    values = pixels.detach().cpu().double().flatten(1)
    rows = [_look_at(one, float(off)) for one, off in zip(values, stated, strict=True)]
    on_grid, share, cost, other = zip(*rows, strict=True) if rows else ((), (), (), ())
    return GridEvidence(
        torch.tensor(on_grid, dtype=torch.bool),
        *(torch.tensor(column, dtype=torch.float64) for column in (share, cost, other)),
    )


def _look_at(values: Float[Tensor, " value"], error: float) -> tuple[bool, float, float, float]:
    """Of one image: whether it is on the grid, the share of sure values, the cost, and that at other scales."""
    if not bool(torch.isfinite(values).all()):
        return False, 0.0, 1.0, 1.0
    level = (values * _LEVELS).round()
    inner = values[(level > 0) & (level < _LEVELS)]
    if not len(inner):
        return False, 0.0, 1.0, 1.0
    some = inner[torch.randperm(len(inner), generator=torch.Generator().manual_seed(0))[:_ENOUGH]]
    cost, others = _cost(some, _LEVELS), torch.tensor([_cost(some, scale) for scale in _FAR])
    off = _remainders(values, _LEVELS).abs()
    share = max(0.0, 1 - 2 * float((off > _UNSURE).double().mean()))
    typical = float(_remainders(inner, _LEVELS).abs().median())
    fits = typical <= max(_ROUNDING, _UNDERSTATED * error * _LEVELS)
    stands_out = float(others.mean()) - cost > _DEVIATIONS * max(_SCATTER, float(others.std()))
    beyond_chance = stands_out or _chance(inner) < _CHANCE
    # As errors of pixels: what is met more closely by a wider grid is not nearer to it.
    closest = min(_cost(some, scale) / scale for scale in _CLOSE)
    here = max(cost, _ROUNDING) / _LEVELS
    on_grid = beyond_chance and fits and share >= _MOSTLY and closest >= _BETTER * here
    return on_grid, share if on_grid else 0.0, cost, float(others.median())


def _remainders(values: Tensor, scale: float) -> Tensor:
    """In steps, from -1/2 to 1/2."""
    scaled = values * scale
    return scaled - scaled.round()


def _cost(values: Tensor, scale: float) -> float:
    return float((12 * _remainders(values, scale).square().mean()).sqrt())


def _chance(inner: Tensor) -> float:
    """How likely remainders as small at each level are by chance; values of one level may be one piece of evidence."""
    level = (inner * _LEVELS).round().long()
    count = torch.bincount(level).double()
    squares = torch.bincount(level, _remainders(inner, _LEVELS).square())
    seen = count > 0
    by_chance = (2 * (squares[seen] / count[seen]).sqrt()).clamp(_ROUNDING, 1)
    return float(torch.special.gammaincc(seen.sum().double(), -by_chance.log().sum()))

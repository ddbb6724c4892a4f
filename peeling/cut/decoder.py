"""A linear decoder from the features at a cut to blocks of pixels, by ridge regression.

The features at one place of the grid, behind the rectifiers, are mapped to the block of pixels that the place stands
for, the same map at every place; its neighbours may be looked at too. It is fitted on photos that are run through the
server's own model: no labels, no private image, a few seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .places import Cut

# What is tried, as shares of the mean variance of a feature; those that are best on crops that were held out are used.
# Where whole photos are, more is tried, and the search ends where one was no better than the one before.
_MORE_RIDGES = (3.0, 1.0, 0.3, 0.1, 0.03)
_RIDGES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
# Of the constant, as a share of the others'.
_LEAST_RIDGE = 1e-6
HELD_OUT = 5
"""One of so many pieces of the crops is held out."""
# Parts that are held out in turn, where whole photos are.
_PARTS = 2
PIXELS, AT_ONCE = 150_000, 16
"""Pixels, and images, that are run at once: what a network keeps of them is a hundred times as much."""


@dataclass(frozen=True)
class Decoded:
    """Images that a descent may start at."""

    images: Float[Tensor, "image channel height width"]
    """As the model is given them."""
    error: float
    """Root mean square of what it leaves of crops that were held out, in the same units: of other photos it leaves
    rather more."""
    fitted: bool = False
    """Whether the images were made to fit, from there on, all that is known behind a max-pooling (`winners`), or the
    features and to be smooth otherwise (`smooth`); the error is still the decoder's, from before that, and as a rule
    an upper one."""


@dataclass(frozen=True)
class LinearDecoder:
    """A linear map from what surrounds a place of the grid to its block of pixels."""

    grid: tuple[int, int]
    block: tuple[int, int]
    reach: int
    """Places on a side of the square that is looked at, odd."""
    offset: Tensor
    scale: Tensor
    weights: Float[Tensor, "feature pixel"]
    explained: float = 1.0
    """What of crops that were held out it explains, as a share of their variance about the mean block; 0 where no
    weights were nearer to them than that mean, which it then makes of all features."""

    def images(self, values: Sequence[Tensor]) -> Float[Tensor, "image channel height width"]:
        """What it makes of features.

        Args:
            values: Of each place of the cut, behind its rectifier.
        """
        rows = _alike(_rows(values, self.grid, self.reach), self.offset.to(values[0]), self.scale.to(values[0]))
        columns = (rows @ self.weights.to(values[0])).reshape(len(values[0]), self.grid[0] * self.grid[1], -1)
        size = (self.grid[0] * self.block[0], self.grid[1] * self.block[1])
        return F.fold(columns.transpose(1, 2), size, self.block, stride=self.block)


def decode(
    cut: Cut,
    crops: Float[Tensor, "crop channel height width"],
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Decoded:
    """What the decoder makes of the cut's features.

    Args:
        cut: With the features.
        crops: Public photos as the model is given them.
        dtype: In which the model is run.
        device: On which.
    """
    decoder, error = fit_decoder(cut, crops, dtype, device)
    return Decoded(decoder.images([place.values for place in cut.places]), error)


def has_blocks(cut: Cut, size: tuple[int, int]) -> bool:
    """Whether images of this height and width are as many whole blocks of pixels as the finest grid has places."""
    return all(side % places == 0 for side, places in zip(size, _finest(cut), strict=True))


def _finest(cut: Cut) -> tuple[int, int]:
    grids = [(place.values.shape[2], place.values.shape[3]) for place in cut.places]
    return max(grids, key=lambda size: size[0] * size[1])


def fit_decoder(
    cut: Cut,
    crops: Float[Tensor, "crop channel height width"],
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    reach: int = 1,
    pictures: int = 1,
) -> tuple[LinearDecoder, float]:
    """The decoder, and the root mean square of what it leaves of crops that were held out.

    Features that leave much open make it guess, and what it guesses it has from the photos that it was fitted on:
    crops of these say nothing of how well. Then all crops of a photo are held out together, each in its turn.

    Args:
        cut: With the features.
        crops: Public photos as the model is given them.
        dtype: In which the model is run.
        device: On which.
        reach: Places on a side of the square that each block of pixels is made from, odd.
        pictures: Photos that the crops are of in turn, where whole photos are to be held out; with 1 some crops are.
    """
    device = device or torch.device("cpu")
    features_of = cut.features(dtype, device)
    grid = _finest(cut)
    height, width = crops.shape[2:]
    block = (height // grid[0], width // grid[1])
    if not has_blocks(cut, (height, width)):
        block = (1, 1)  # not one block for each place: each pixel by the place nearest to it
        grid = (height, width)
    always, parts = _Sums(), [_Sums() for _ in range(min(pictures, _PARTS))]
    at_once = max(1, min(AT_ONCE, PIXELS // (height * width)))
    if cut.is_coupled:  # statistics of as many images as the cut's
        at_once = len(cut.places[0].values)
        crops = crops[: max(1, len(crops) // at_once) * at_once]
    offset = scale = None
    with torch.no_grad():
        for index, some in enumerate(torch.split(crops, at_once)):
            given = some.to(device, dtype)
            features = _rows(features_of(given), grid, reach)
            if offset is None or scale is None:
                offset, scale = features.mean(dim=0), features.std(dim=0)
                scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.inf)
            blocks = F.unfold(given, block, stride=block).transpose(1, 2).flatten(0, 1)
            rows = _alike(features, offset, scale)
            if pictures == 1:
                (parts[0] if index % HELD_OUT == HELD_OUT - 1 else always).add(rows, blocks)
                continue
            of = (index * at_once + torch.arange(len(some))) % pictures % len(parts)
            of = of.to(device).repeat_interleave(len(rows) // len(some))
            for number, part in enumerate(parts):
                part.add(rows[of == number], blocks[of == number])
    assert offset is not None
    assert scale is not None
    offset, scale = offset.cpu().double(), scale.cpu().double()
    # Of the places of the square each has the noise of its channel.
    noise = [place.deviation.square().mean(dim=(0, 2, 3)).repeat_interleave(reach**2) for place in cut.places]
    held = [part for part in parts if part.pixels] or [always]
    fitted = _fit(_Sums.of([always, *parts]), held, torch.cat([*noise, torch.zeros(1)]) / scale.square())
    return LinearDecoder(grid, block, reach, offset, scale, fitted.weights, fitted.explained), fitted.left**0.5


class _Sums:
    """Products of features and pixels over many places."""

    def __init__(self) -> None:
        self.square = self.mixed = torch.zeros((), dtype=torch.float64)
        self.whole, self.pixels = 0.0, 0

    def add(self, features: Float[Tensor, "row feature"], blocks: Float[Tensor, "row pixel"]) -> None:
        """With these rows."""
        self.square = self.square + (features.T @ features).cpu().double()
        self.mixed = self.mixed + (features.T @ blocks).cpu().double()
        self.whole += float(blocks.double().square().sum())
        self.pixels += blocks.numel()

    @staticmethod
    def of(parts: Sequence[_Sums]) -> _Sums:
        """Of the rows of all parts."""
        whole = _Sums()
        for part in parts:
            whole.square, whole.mixed = whole.square + part.square, whole.mixed + part.mixed
            whole.whole, whole.pixels = whole.whole + part.whole, whole.pixels + part.pixels
        return whole

    def left(self, weights: Float[Tensor, "feature pixel"]) -> float:
        """Sum of squares of what weights leave of the pixels."""
        explained = float((weights * (2 * self.mixed - self.square @ weights)).sum())
        return max(self.whole - explained, 0.0)


class _Fitted(NamedTuple):
    weights: Tensor
    left: float
    """Of the crops that were held out, mean square."""
    explained: float


def _fit(whole: _Sums, held: Sequence[_Sums], noise: Float[Tensor, " feature"]) -> _Fitted:
    """The weights that leave least of the crops that were held out, fitted on all; no weights but the mean block where
    that leaves less.

    What errors of the features do to the pixels counts too: features of which little varies are magnified.

    Args:
        whole: Of all crops.
        held: Parts of them that are held out in turn; where one is all there is, it is fitted on too.
        noise: Mean square error of each feature.
    """
    size, pixels = float(whole.square.diagonal().mean()), sum(part.pixels for part in held)
    rests = [(whole.square, whole.mixed) if part.pixels == whole.pixels else _without(whole, part) for part in held]
    flat = sum(part.left(_mean(*rest)) for part, rest in zip(held, rests, strict=True)) / pixels
    best: tuple[float, float] | None = None
    for share in (*_MORE_RIDGES, *_RIDGES) if len(held) > 1 else _RIDGES:
        left = 0.0
        for part, rest in zip(held, rests, strict=True):
            weights = _solved(*rest, share * size)
            if weights is None:
                left = math.inf
                break
            errors = float((weights.square().sum(dim=1) * noise).sum()) / weights.shape[1]
            left += (part.left(weights) + part.pixels * errors) / pixels
        if best is not None and not left < best[0]:
            if len(held) > 1:
                break
        elif math.isfinite(left):
            best = left, share
    weights = None if best is None else _solved(whole.square, whole.mixed, best[1] * size)
    if best is None or weights is None or not best[0] < flat:
        return _Fitted(_mean(whole.square, whole.mixed), flat, 0.0)
    return _Fitted(weights, best[0], 1 - best[0] / flat)


def _mean(square: Tensor, mixed: Tensor) -> Tensor:
    """Weights of the constant alone, which is last: the mean block."""
    weights = torch.zeros_like(mixed)
    weights[-1] = mixed[-1] / square[-1, -1].clamp_min(1)
    return weights


def _without(whole: _Sums, part: _Sums) -> tuple[Tensor, Tensor]:
    return whole.square - part.square, whole.mixed - part.mixed


def _solved(square: Tensor, mixed: Tensor, ridge: float) -> Tensor | None:
    """The constant, which is last, is not held small."""
    held = torch.full((len(square),), ridge, dtype=square.dtype)
    held[-1] = _LEAST_RIDGE * ridge
    factor, failed = torch.linalg.cholesky_ex(square + held.diag())
    return None if int(failed) else torch.cholesky_solve(mixed, factor)


def _alike(features: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    """Features about their mean and of one size, and a constant; small differences of large numbers are not lost."""
    found = (features - offset) / scale
    found[:, -1] = 1
    return found


def _rows(values: Sequence[Tensor], grid: tuple[int, int], reach: int) -> Tensor:
    """One row for each place of the grid, of the square around it, with a constant."""
    alike = [value if tuple(value.shape[2:]) == grid else F.interpolate(value, grid) for value in values]
    around = F.unfold(torch.cat(alike, dim=1), reach, padding=reach // 2)
    rows = around.transpose(1, 2).flatten(0, 1)
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)

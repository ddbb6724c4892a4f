"""Places of many visits, each up to its length and without an order, from the weight delta of a pointwise convolution.

A weight delta over the rate is ``D^T A`` with a row for each place of each visit (see `local_steps`), so that its row
space holds every visit's input while these are at most both numbers of channels. Unlike one gradient's rows (`unmixed`)
they come in groups that are nearly alike, the visits of one image, and each was rounded with the weights:

- the delta is weighed by the deviation of its rows and columns, which makes the noise even, and what is behind the
  places tells how large it is;
- a non-negative mixture of like rows may be zero at nearly as many units as a row, and is then fixed by a few zeros
  that it has by chance. A row is one whose zeros fix it even without the few of them that fix it most, by more than the
  noise of the directions in which it might still move: that between two like rows is nearly all noise;
- channels that only weak places use are left out of the search, and follow from the same factors of the delta;
- rows are believed one by one: of some visits they may be found where those of others are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...capture.labels.unmixing import find_facet, least_moment, sharpen
from ..refusals import Why
from .unmixed import NoRows

MOST_LOOSE = 48
"""Beyond this many places the linear programs take minutes."""
# Channels whose root mean square is below so many deviations are left out of the search.
_LIVE = 20.0
# The singular value behind the places, over the last of theirs; and over what noise of the stated size makes at most.
_LARGEST_DROP, _EDGE = 0.03, 3.0
# What the linear programs take for noise: they only have to come near.
_PROGRAM_NOISE = 1e-3
# Units in a linear program for each place at first.
_BEGUN = 8
# Linear programs for each place, and how many for each in a row may lead to no new one.
_TRIES, _FUTILE = 8, 3
# From what share of a row's root mean square to its own noise its zeros are narrowed, and in how many steps.
_FROM, _NARROWED, _AGAIN = 1e-2, 20, 5
# Entries within so many deviations of zero are zero, and none is below by more.
_DEVIATIONS = 5.0
# Without so many of the zeros that fix it most a row is still fixed, its other moments so many times the noise's.
_WITHOUT, _FIXED = 3, 30.0
# Mean square of the zeros, in deviations, above which some are none.
_LARGEST_SPREAD = 1.5
# Two rows are one where they are apart by less than so many of their errors.
_SAME = 10.0
_LEAST_ERROR = 5e-7


@dataclass(frozen=True)
class LooseRows:
    """Those that were found; any may be lacking. Which visit, image and place each is of is not known."""

    inputs: Float[Tensor, "row input"]
    """Never negative; of length 1."""
    error: Float[Tensor, " row"]
    """Estimated, relative."""
    places: int
    """Of all visits."""
    noise: float
    """Over signal, in the weakest direction."""


def find_loose_rows(
    summed: Float[Tensor, "output input *ones"],
    deviation: Float[Tensor, "output input *ones"],
    places: int,
    tolerance: float,
) -> LooseRows | NoRows:
    """The rows that are sure, or why there are none.

    Args:
        summed: Of all steps' gradients, of a convolution whose input comes out of a rectifier.
        deviation: Of each of its entries.
        places: Of all visits.
        tolerance: The largest estimated error of a row that is believed.
    """
    gradient, spread = (one.detach().cpu().double().flatten(1) for one in (summed, deviation))
    if not bool(torch.isfinite(gradient).all()) or not bool((spread > 0).all()):
        return NoRows(Why.RANK)
    by_output = spread.square().mean(dim=1).sqrt()
    by_input = (spread / by_output[:, None]).square().mean(dim=0).sqrt()
    weighed = gradient / by_output[:, None] / by_input
    live = weighed[:, weighed.square().mean(dim=0).sqrt() > _LIVE]
    if not 1 < places < min(live.shape):
        return NoRows(Why.RANK)
    left, moments, right = torch.linalg.svd(live, full_matrices=False)
    free = math.prod(side - places for side in live.shape)
    noise = float((moments[places:].square().sum() / free).sqrt())
    edge = _EDGE * max(noise, 1.0) * sum(side**0.5 for side in live.shape)
    drop = float(moments[places] / moments[places - 1].clamp_min(1e-300))
    if not drop < _LARGEST_DROP or not float(moments[places]) < edge:
        return NoRows(Why.RANK)
    search = _Search(right[:places], noise / moments[:places])
    found = search.rows()
    if not len(found):
        return NoRows(Why.ALIKE)
    deviations = torch.stack([search.deviation(row) for row in found])
    # A channel that only weak places use helps no search, and is a part of their rows all the same.
    everywhere = (left[:, :places] / moments[:places]).T @ weighed * by_input
    values = found @ everywhere
    inputs = torch.where(values < _DEVIATIONS * deviations[:, None] * by_input, 0.0, values)
    size = inputs.norm(dim=1)
    # What the zeros leave open of the row, and the noise in each of its entries.
    off = torch.stack([search.left_open(row, everywhere) for row in found])
    error = ((deviations * by_input.norm()).square() + off.square()).sqrt() / size
    sure = error <= tolerance
    if not bool(sure.any()):
        return NoRows(Why.INEXACT)
    error = error.clamp_min(_LEAST_ERROR)
    return LooseRows((inputs / size[:, None])[sure], error[sure], places, drop)


@dataclass(frozen=True)
class _Search:
    """For rows in the span of a basis each of whose directions has a noise of its own."""

    basis: Float[Tensor, "place unit"]
    noise: Float[Tensor, " place"]
    """Deviation of an entry of each direction."""

    def rows(self) -> Float[Tensor, "row place"]:
        """Mixings of the basis that are rows."""
        places, units = self.basis.shape
        random = torch.Generator().manual_seed(0)
        some = torch.randperm(units, generator=torch.Generator().manual_seed(1))[: _BEGUN * places]
        found, errors = self.basis.new_zeros(0, places), self.basis.new_zeros(0)
        tried, futile = list[int](), 0
        while len(found) < places and len(tried) < min(_TRIES * places, units) and futile < _FUTILE * places:
            # A unit that is strong and that the rows found explain least.
            explained = (found @ self.basis).clamp_min(0).sum(dim=0) * units**0.5
            score = self.basis.norm(dim=0) / (explained + 0.3)
            score = score * torch.rand(units, generator=random, dtype=score.dtype).sqrt()
            score[tried] = 0
            tried.append(int(score.argmax()))
            futile += 1
            facet = find_facet(self.basis, tried[-1], _PROGRAM_NOISE, some)
            if facet is None:
                continue
            row = self._narrowed(sharpen(self.basis, facet))
            if not self._stands(row):
                continue
            error = self.left_open(row, self.basis) + self.deviation(row) * units**0.5
            if bool(((found - row).norm(dim=1) < _SAME * (errors + error)).any()):
                continue
            found, errors, futile = torch.cat([found, row[None]]), torch.cat([errors, error[None]]), 0
        return found

    def left_open(self, row: Float[Tensor, " place"], at: Float[Tensor, "place _"]) -> Tensor:
        """How far off the row's values in another basis may be for the noise at its zeros."""
        some = self.basis[:, self._zeros(row)]
        moments, directions = self._fixing(some)
        own = some.shape[1] * self.deviation(directions.T).square()
        told = (moments - own).clamp_min(1e-300)
        return self.deviation(row) * ((directions.T @ at).square().sum(dim=1) / told).sum().sqrt()

    def deviation(self, row: Float[Tensor, "*many place"]) -> Float[Tensor, "*many"]:
        """Of an entry of the row."""
        return (row * self.noise).norm(dim=-1)

    def _fixing(self, some: Float[Tensor, "place _"]) -> tuple[Tensor, Tensor]:
        """In which directions a row may not move for what these units have there, and how much: their second moments,
        of which noise is a part."""
        moments, directions = torch.linalg.eigh(some @ some.T)
        return moments[1:].clamp_min(1e-300), directions[:, 1:]

    def _zeros(self, row: Float[Tensor, " place"]) -> Bool[Tensor, " unit"]:
        return (row @ self.basis).abs() < _DEVIATIONS * self.deviation(row)

    def _narrowed(self, row: Float[Tensor, " place"]) -> Tensor:
        """The row that is least at its zeros, which are taken ever more narrowly, down to its noise."""
        first, last = _FROM / self.basis.shape[1] ** 0.5, 1.5 * float(self.deviation(row))
        for width in torch.logspace(math.log10(max(first, 2 * last)), math.log10(last), _NARROWED).tolist():
            values = (row @ self.basis).clamp_min(0)
            row = least_moment(self.basis, width**2 / (width**2 + values.square()))
        for _ in range(_AGAIN):
            row = least_moment(self.basis, (row @ self.basis < _DEVIATIONS * self.deviation(row)).double())
        return row

    def _stands(self, row: Float[Tensor, " place"]) -> bool:
        """Whether this is a row and no mixture of some."""
        deviation, places = self.deviation(row), len(row)
        values, zeros = row @ self.basis, self._zeros(row)
        count = int(zeros.sum())
        if count < places + _WITHOUT or not float(values.min()) > -_DEVIATIONS * deviation:
            return False
        spread = float((values[zeros] / deviation).square().sum()) / (count - places + 1)
        if not spread < _LARGEST_SPREAD:
            return False
        left = zeros.nonzero()[:, 0]
        for _ in range(_WITHOUT):
            some = self.basis[:, left]
            moments, directions = self._fixing(some)
            worst = int(((directions / moments.sqrt()).T @ some).square().sum(dim=0).argmax())
            left = torch.cat([left[:worst], left[worst + 1 :]])
        moments, directions = self._fixing(self.basis[:, left])
        # The difference of two like rows lies in weak directions of the basis, and may be all noise.
        noise = self.deviation(directions.T).maximum(deviation)
        return bool((moments.sqrt() > _FIXED * noise * count**0.5).all())

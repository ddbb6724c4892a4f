"""The batch taken apart by the units that are shut: labels, features and outputs of each image, whatever its label.

The gradient of the final layer, ``G = sum_i d_i^T f_i``, has rank B while there are fewer images than classes, so each
image's features lie in the space of its B right singular vectors, ``f_i = a_i R``. Behind a ReLU they are never
negative and zero at a large share of the units, which almost no other point of that space is: a combination of images
is zero only where all of them are, or by chance. So the features are the sparse, non-negative vectors of a space of B
dimensions, and can be looked for without labels and without the equations of the softmax. (That ReLU's zeros identify
the images of a batch is the observation of SPEAR, Dimitrov et al., NeurIPS 2024, there for the zeros of the gradient
behind a layer; that a layer's gradient is a mixture of its inputs to be unmixed, of the cocktail party attack,
Kariyappa et al., ICML 2023.)

Geometrically the columns of R are points in B dimensions, every ``a_i`` is the normal of a facet of the cone that they
span, and the facet holds all units that are shut for image i. A linear program over the cone finds such a facet, and a
few eigenvectors of reweighted second moments make it exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..rounding import sent_type

MOST_IMAGES = 64
"""Beyond this many images the linear programs take minutes."""
# Units whose gradient is below this share of the largest one's say nothing: they are shut for all images.
_DEAD = 1e-6
# Noise over signal, in the weakest direction, above which nothing is looked for.
_LARGEST_NOISE = 0.05
# Linear programs for each image, and how many in a row may lead to no new image.
_TRIES, _FUTILE = 8, 12
# Units in a linear program for each image at first, and how many are added at a time.
_FIRST, _ADDED = 8, 3
# Features that are not negative and sum to 1 are no longer than that, and neither is a in an orthonormal basis.
_LARGEST_ENTRY = 2.0
# How negative a feature may be left by a linear program: so many widths of what counts as shut, relative to the mean.
_LEFT_NEGATIVE = 5.0
# Widths of what counts as zero, in root mean squares of the features, from the first look to the last.
_WIDTHS = np.geomspace(5e-2, 1e-3, 20)
# The least share of units that are shut for an image, and how many deviations of noise still count as shut.
_LEAST_SHUT, _DEVIATIONS = 0.1, 4.0
# Two solutions are one where their cosine differs from 1 by less.
_SAME = 1e-6
# The least share of a row's negative part that lies at its label, and how far above its noise that entry must be: of
# 573 updates of small and of very sure networks the labels of 20 were wrong, all below 0.04 deviations; of the 553 that
# were right 543 were above 12.
_LEAST_LABEL, _LEAST_SIGNAL = 0.9, 3.0
# Images whose features' matrix is worse conditioned are one image twice.
_LARGEST_CONDITION = 1e6


@dataclass(frozen=True)
class Unmixed:
    """Every image of the batch: ``rows.T @ features`` is the weight gradient. Float64, on the CPU.

    The length of ``features`` is 1, so that each image's two factors are known up to a number.
    """

    features: Float[Tensor, "image feature"]
    rows: Float[Tensor, "image class"]
    """``(p - y) / B``, times the length of the true features."""
    labels: Int[Tensor, " image"]
    """Where each row is negative."""
    purity: Float[Tensor, " image"]
    """The share of the row's negative part that lies at its label: 1 without noise."""
    noise: Float[Tensor, " image"]
    """Root mean square of the features where they are shut."""
    error: Float[Tensor, " image"]
    """Estimated relative error of the features, which are less exact where they are not zero."""
    signal: Float[Tensor, " image"]
    """How far each row's entry at its label lies below zero, in deviations of its noise."""


class UnmixOnce:
    """``unmix`` that takes the same gradient apart once, whoever asks for it and whatever smoothing they allow for."""

    def __init__(self) -> None:
        self._asked: tuple[Tensor, int] | None = None
        self._apart: Unmixed | None = None

    def __call__(
        self, weight_gradient: Float[Tensor, "class feature"], image_count: int, smoothing: float = 0.0
    ) -> Unmixed | None:
        """See ``unmix``."""
        if not self._knows(weight_gradient, image_count):
            self._asked = weight_gradient.detach().clone(), image_count
            self._apart = _take_apart(weight_gradient, image_count)
        return None if self._apart is None else _accepted(self._apart, smoothing)

    def _knows(self, weight_gradient: Tensor, image_count: int) -> bool:
        if self._asked is None:
            return False
        gradient, count = self._asked
        return count == image_count and gradient.dtype == weight_gradient.dtype and gradient.equal(weight_gradient)


def unmix(weight_gradient: Float[Tensor, "class feature"], image_count: int, smoothing: float = 0.0) -> Unmixed | None:
    """All images of the batch; None where that many are not found.

    Needs an input of the layer that comes out of a ReLU without pooling, fewer images than classes, and little noise
    (a clipped gradient is fine). Images that repeat cannot be told apart.

    Args:
        weight_gradient: Of the final layer.
        image_count: B.
        smoothing: Of the labels: above 0 classes beside the label may be negative too, as long as it is far the lowest.
    """
    apart = _take_apart(weight_gradient, image_count)
    return None if apart is None else _accepted(apart, smoothing)


def _accepted(apart: Unmixed, smoothing: float) -> Unmixed | None:
    """The images with their purity under this smoothing; None where the rows are not those of a softmax."""
    negative = apart.rows.clamp_max(0)
    lowest = negative.gather(1, apart.labels[:, None])[:, 0].clamp_max(-1e-300)
    if smoothing:
        purity = 1 - negative.scatter(1, apart.labels[:, None], 0.0).amin(dim=1) / lowest
    else:
        purity = lowest / negative.sum(dim=1).clamp_max(-1e-300)
    if not (float(purity.min()) >= _LEAST_LABEL and float(apart.signal.min()) >= _LEAST_SIGNAL):
        return None
    return replace(apart, purity=purity)


def _take_apart(weight_gradient: Float[Tensor, "class feature"], image_count: int) -> Unmixed | None:
    """Every image, before anything is asked of its row; None where that many are not found."""
    gradient = weight_gradient.detach().double().cpu()
    if not 1 <= image_count < min(len(gradient), MOST_IMAGES + 1) or not bool(torch.isfinite(gradient).all()):
        return None
    size = gradient.norm(dim=0)
    live = size > _DEAD * size.max()
    if int(live.sum()) <= 2 * image_count:
        return None
    # Each entry was rounded relative to its size: rows of one length have one noise, and weak ones are not drowned.
    length = gradient.norm(dim=1)
    # Rows of numbers too small to be stored with all their digits say nothing.
    stored = torch.finfo(sent_type(weight_gradient))
    weights = torch.where(length > stored.tiny / stored.eps, 1 / length.clamp_min(1e-300), 0.0)
    left, sizes, right = torch.linalg.svd(gradient[:, live] * weights[:, None], full_matrices=False)
    floor = max(float(sizes[image_count]), float(stored.eps / 4 * sizes[0]))
    noise = floor / max(float(sizes[image_count - 1]), 1e-300)
    if not noise < _LARGEST_NOISE:
        return None
    basis = right[:image_count]
    mixing = find_facets(basis, noise)
    if mixing is None:
        return None
    features, shut = mixing @ basis, []
    for image in range(image_count):
        found, error = polish_facet(basis, features[image], noise)
        mixing[image], features[image] = found, found @ basis
        shut.append(error)
    if not float(torch.linalg.cond(mixing)) < _LARGEST_CONDITION:
        return None
    inverse = torch.linalg.inv(mixing)
    rows = (left[:, :image_count] * sizes[:image_count] @ inverse).T * length
    labels = rows.argmin(dim=1)
    # An image that the model is sure of may lie below what rounding left of the others: then this is not its row.
    signal = -rows.gather(1, labels[:, None])[:, 0] / (floor * inverse.norm(dim=0) * length[labels]).clamp_min(1e-300)
    whole = gradient.new_zeros(image_count, gradient.shape[1])
    whole[:, live] = features
    # What rounding leaves in the directions that the image's features are made of.
    error = floor * (mixing / sizes[:image_count]).norm(dim=1)
    noise_left = torch.tensor(shut, dtype=torch.float64)
    return Unmixed(whole, rows, labels, torch.ones_like(error), noise_left, error, signal)


def find_facets(
    basis: Float[Tensor, "image unit"], noise: float, least_shut: float = _LEAST_SHUT
) -> Float[Tensor, "image image"] | None:
    """Rows ``a`` for which ``a R`` is sparse and non-negative, of length 1; None where they are fewer than images.

    Args:
        basis: R, orthonormal rows that span the images' features.
        noise: Over signal, in the weakest direction.
        least_shut: The least share of units that are shut for an image.
    """
    count, units = basis.shape
    random = torch.Generator().manual_seed(0)
    some = torch.randperm(units, generator=torch.Generator().manual_seed(1))[: _FIRST * count]
    found = basis.new_zeros(0, count)
    tried: list[int] = []
    futile = 0
    while len(found) < count and len(tried) < min(_TRIES * count + _FUTILE, units) and futile < _FUTILE + count:
        # A unit that is strong and that the images found explain least.
        explained = (found @ basis).clamp_min(0).sum(dim=0) * units**0.5
        score = basis.norm(dim=0) / (explained + 0.3) * torch.rand(units, generator=random, dtype=basis.dtype).sqrt()
        score[tried] = 0
        tried.append(int(score.argmax()))
        futile += 1
        facet = find_facet(basis, tried[-1], noise, some)
        if facet is None:
            continue
        facet = sharpen(basis, facet)
        features = facet @ basis
        shut = float((features.abs() < _zero(noise) / units**0.5).double().mean())
        if shut < max(least_shut, 3 * count / units):
            if not len(found) and len(tried) >= _FUTILE:
                return None
            continue
        if len(found) and float((found @ facet).max()) > 1 - _SAME:
            continue
        found, futile = torch.cat([found, facet[None]]), 0
    return found if len(found) == count else None


def _zero(noise: float) -> float:
    """What counts as shut, in root mean squares of the features."""
    return max(float(_WIDTHS[-1]), _DEVIATIONS * noise)


def find_facet(
    basis: Float[Tensor, "image unit"], unit: int, noise: float, some: Int[Tensor, " some"]
) -> Tensor | None:
    """The non-negative features of a given sum that are largest at one unit, as a row ``a`` of length 1.

    The program over all units is solved by cutting planes: over some of them first, then with those added that came out
    the most negative, until none is far below what counts as shut anyway. What is left of that `sharpen` takes away.

    Args:
        basis: R.
        unit: Whose features are to be largest.
        noise: Over signal, in the weakest direction.
        some: Units to begin with.
    """
    points, units = basis.numpy(), basis.shape[1]
    asked = np.zeros(units, dtype=bool)
    asked[some.numpy()] = True
    total, length = points.sum(axis=1), np.linalg.norm(points, axis=0)
    allowed = (1e-6 + 2 * _DEVIATIONS * noise) / units
    while True:
        found = scipy.optimize.linprog(
            -points[:, unit],
            A_ub=-points[:, asked].T,
            b_ub=np.full(int(asked.sum()), allowed),
            A_eq=total[None],
            b_eq=[1.0],
            bounds=(-_LARGEST_ENTRY, _LARGEST_ENTRY),
            method="highs",
        )
        if found.x is None:
            return None
        facet = np.asarray(found.x, dtype=np.float64)
        features = facet @ points
        negative = np.where(asked | (features >= -_LEFT_NEGATIVE * _zero(noise) / units), 0.0, features / length)
        below = np.flatnonzero(negative)
        if not len(below):
            break
        worst = negative[below].argsort(kind="stable")[: _ADDED * len(points)]
        asked[below[worst]] = True
    row = torch.from_numpy(facet)
    return row / row.norm()


def sharpen(basis: Float[Tensor, "image unit"], facet: Tensor) -> Tensor:
    """Towards more zeros: the least eigenvector of the second moments in which units near zero, or below, count."""
    units = basis.shape[1]
    for width in _WIDTHS:
        features = (facet @ basis).clamp_min(0) * units**0.5
        weights = width**2 / (width**2 + features.square())
        facet = least_moment(basis, weights)
    return facet


def polish_facet(basis: Float[Tensor, "image unit"], features: Tensor, noise: float) -> tuple[Tensor, float]:
    """The row ``a`` whose features are smallest at the units that are shut, and how small they are there."""
    units = basis.shape[1]
    width = _zero(noise) / units**0.5
    for _ in range(3):
        shut = features < width
        row = least_moment(basis, shut.to(basis))
        features = row @ basis
        error = float(features[shut].square().mean().sqrt())
        width = min(width, max(_DEVIATIONS * error, 1e-12))
    return row, error


def least_moment(basis: Float[Tensor, "image unit"], weights: Float[Tensor, " unit"]) -> Tensor:
    row: Tensor = torch.linalg.eigh((basis * weights) @ basis.T).eigenvectors[:, 0]
    return row * (row @ basis).sum().sign()

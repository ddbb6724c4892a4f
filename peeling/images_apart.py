"""The images of a batch told apart in what the taps of a convolution gave: its input comes out of a ReLU.

What `taps` leaves open is one mixing of the images, the same at every place and channel. Each image's input is never
negative and zero at many units, and nearly no mixture of images is (see `capture.labels.unmixing`, whose linear
programs are used here on vectors of all places and channels).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..capture.labels.unmixing import find_facets, polish_facet
from .images_mixed import mixing_errors
from .layers import sizes
from .taps import Factors

# Units below this share of the strongest are shut for every image and say nothing.
_DEAD, _DEAD_NOISE = 1e-4, 30.0
# Units that the linear programs look at, and at least so many for each image.
_LOOKED_AT, _FOR_EACH = 3000, 60
# Networks with random weights differ in few units from image to image: a batch is told apart by as few as these.
_LEAST_SHUT = 0.01
# Noise over signal at which the programs are tried, one after another.
_NOISES = (1e-6, 1e-4, 1e-3, 5e-3)
# Mixings worse conditioned than this are one image twice.
_LARGEST_CONDITION = 1e6
# What a shut unit may be above zero, in the deepest one below, and in misfits of the factors.
_ABOVE, _MISFITS = 2.0, 1.0
# Rounds in which each image is told apart anew by the units that its own noise leaves shut; and up to which share of
# its root mean square these reach: beyond it they would be most of the image.
_ROUNDS, _FARTHEST = 4, 0.1
# The largest share of what tells an image from the others that one shut unit may have (its leverage). Where the units
# that are shut in it are shut in another one too, any mixture of both is never negative, and the one that a program
# ends at is told by the single unit that happens to become zero: there it is 1. Of images that were right it was 0.8
# at most.
_LARGEST_LEVERAGE = 0.98


@dataclass(frozen=True)
class Apart:
    """Each image's own input and cotangent, up to its length. Float64, on the CPU."""

    inputs: Float[Tensor, "image place input"]
    """Never negative; of length 1 for each image."""
    cotangents: Float[Tensor, "image place output"]
    """Such that ``sum_i cotangents[i]^T T_d inputs[i]`` is the gradient."""
    error: Float[Tensor, " image"]
    """What of each image's input is below zero, relative to all of it: where a ReLU stands before, that is error."""
    shut: Float[Tensor, " image"]
    """Units of each image's input up to this share of its root mean square are shut: its own noise is as large. That of
    an image that the network is sure of can be a thousand times the others'."""
    mixed: Float[Tensor, " image"]
    """Estimated relative error of each image's input by what it may still hold of the others."""
    lacking: Float[Tensor, " image"]
    """And of its cotangent, which then lacks as large a share of the others'."""

    @property
    def is_open(self) -> Bool[Tensor, "image place input"]:
        """Units that are above each image's noise."""
        return self.inputs > (self.shut * sizes(self.inputs))[:, None, None]


def tell_apart(factors: Factors) -> Apart | None:
    """The images behind these factors; None where they cannot be told apart.

    Args:
        factors: of a convolution whose input comes out of a ReLU.
    """
    count = len(factors.inputs)
    flat = factors.inputs.reshape(count, -1)
    if not bool(torch.isfinite(flat).all()):
        return None
    mixing = _single(flat) if count == 1 else _mixing(flat, factors.misfit)
    if mixing is None or not float(torch.linalg.cond(mixing)) < _LARGEST_CONDITION:
        return None
    mixing = _by_own_noise(mixing, flat, factors.misfit)
    inputs = mixing @ flat
    length = inputs.norm(dim=1, keepdim=True)
    cotangents = torch.linalg.inv(mixing).T @ factors.cotangents.reshape(count, -1)
    inputs, cotangents = inputs / length, cotangents * length
    below, shut = inputs.clamp_max(0).norm(dim=1), _shut(inputs, factors.misfit)
    mixed, lacking = mixing_errors(inputs, cotangents, inputs <= (shut * sizes(inputs))[:, None])
    inputs = inputs.clamp_min(0).reshape(factors.inputs.shape)
    apart = Apart(inputs, cotangents.reshape(factors.cotangents.shape), below, shut, mixed, lacking)
    return None if largest_leverage(apart) > _LARGEST_LEVERAGE else apart


def largest_leverage(apart: Apart) -> float:
    """Of one shut unit on the mixing of its image with the others; 0 for a single image."""
    inputs, is_open = apart.inputs.flatten(1), apart.is_open.flatten(1)
    largest = 0.0
    for image, shut in enumerate(~is_open):
        others = torch.arange(len(inputs)) != image
        if bool(others.any()) and int(shut.sum()) >= int(others.sum()):
            orthonormal, _ = torch.linalg.qr(inputs[others][:, shut].T)
            largest = max(largest, float(orthonormal.square().sum(dim=1).max()))
    return largest


def without_others(rows: Float[Tensor, "image unit"], shut: Bool[Tensor, "image unit"]) -> Float[Tensor, "image image"]:
    """What of the other images to add to each row so that the units that are shut in it are zero.

    Args:
        rows: One for each image, nearly its own.
        shut: Units of each.
    """
    count = len(rows)
    mixing = torch.eye(count, dtype=rows.dtype)
    for image in range(count):
        others = [other for other in range(count) if other != image]
        if not others or not bool(shut[image].any()):
            continue
        columns = rows[others][:, shut[image]].T
        solution = torch.linalg.lstsq(columns, -rows[image, shut[image]][:, None], driver="gelsd").solution
        mixing[image, others] = solution[:, 0]
    return mixing


def _by_own_noise(mixing: Tensor, flat: Tensor, misfit: float) -> Float[Tensor, "image image"]:
    """The mixing by as many shut units as each image's own noise shows, where the programs know one noise for all."""
    for _ in range(_ROUNDS):
        rows = mixing @ flat
        shut = _shut(rows, misfit)
        near = rows <= (shut * sizes(rows))[:, None]
        mixing = without_others(rows, near & (shut <= _FARTHEST)[:, None]) @ mixing
    return mixing


def _shut(rows: Float[Tensor, "image unit"], misfit: float) -> Float[Tensor, " image"]:
    """Up to which share of its root mean square a unit of each image is shut."""
    deepest = (-rows).amax(dim=1).clamp_min(0) / sizes(rows).clamp_min(1e-300)
    return (_ABOVE * deepest).clamp_min(max(_MISFITS * misfit, torch.finfo(rows.dtype).eps))


def _single(flat: Tensor) -> Tensor:
    """Of one image only the sign is open."""
    return flat.sum().sign().reshape(1, 1)


def _mixing(flat: Float[Tensor, "image unit"], misfit: float) -> Float[Tensor, "image image"] | None:
    """What takes mixtures to images."""
    orthonormal, triangle = torch.linalg.qr(flat.T)
    basis = orthonormal.T.contiguous()
    count = len(basis)
    for noise in _NOISES:
        if noise < misfit:
            continue
        strength = basis.norm(dim=0)
        live = (strength > max(_DEAD, _DEAD_NOISE * noise) * strength.max()).nonzero().flatten()
        shuffled = live[torch.randperm(len(live), generator=torch.Generator().manual_seed(0))]
        some = basis[:, shuffled[: max(_LOOKED_AT, _FOR_EACH * count)]]
        some = some / some.norm(dim=0).square().mean().sqrt() * (count / some.shape[1]) ** 0.5
        facets = find_facets(some, noise, _LEAST_SHUT)
        if facets is None:
            continue
        polished = [polish_facet(basis[:, live], facet @ basis[:, live], noise)[0] for facet in facets]
        return torch.stack(polished) @ torch.linalg.inv(triangle.T)
    return None

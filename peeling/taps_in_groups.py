"""The taps of a convolution whose channels are in groups: each group's taken apart, and all under one mixing.

Each group g is a convolution of its own, with ``N <= min(C_in, C_out) / groups`` places, whose factors have a mixing of
the images of their own: ``Delta_g -> T_g Delta_g``. Images that differ in few units are not told apart by one group's
channels, and images told apart in one would have to be found again in the next. So the mixings are made one first. The
convolution in front, with weight gradient G, has the derivative D = s mask (W^T * Delta) at its output (s: what batch
norm scales by), and the columns of G span the rows of D at all N places: V. At place p the units that are shut for
every image are seen in the mixed inputs, zero in each, and there D is zero for every image: what of V vanishes there is
spanned by the B rows of D at p, over the channels of all groups: ``E_p = K_p D_p``. On units that are open for every
image, ``E_p = Q_pg u_pg`` with u the mixed ``s W^T * Delta`` of group g: that ``Q_pg = K_p T_g^-1`` on which the most
units agree, and the factor of rank B of all of these is the T_g, up to one mixing for all groups.

Rank: ``N <= min(C_in, C_out) / groups``; N - B units shut for every image at every place; a convolution in front with a
gradient of its own; in each group at one place at least B + 2 units that are open for every image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .kinds import Kind
from .taps import Factors, factor_taps, leading_range

# Units below this share of their group's root mean square, in inputs of length 1, are shut for every image.
_SHUT = 1e-4
# Of singular values: what lies beyond a rank, over the weakest within it, above which there is no such rank.
_LARGEST_GAP = 0.05
# Choices of as many units as there are images; what a unit that fits is off by at most, relative; and how many more
# must fit than decide it.
_TRIES, _SAME, _MORE = 2000, 1e-3, 2
# Rounds in which what fits badly counts for less, and how small a residual counts as exact.
_REWEIGHTED, _EXACT = 40, 1e-9


@dataclass(frozen=True)
class Front:
    """The convolution in front of the rectifier whose output is taken apart."""

    gradient: Float[Tensor, "channel entry"]
    """Of its weight."""
    scale: Float[Tensor, " channel"]
    """Derivative by its output for one of 1 in front of the rectifier."""


def factor_taps_in_groups(
    weight_gradient: Float[Tensor, "output group_channel row column"],
    groups: int,
    image_count: int,
    size: tuple[int, int],
    kind: Kind,
    tensors: Mapping[str, Tensor],
    front: Front,
) -> Factors | None:
    """As `factor_taps`, of all groups side by side under one mixing; None where one cannot be taken apart or linked.

    Args:
        weight_gradient: Captured.
        groups: At least 2.
        image_count: Of the batch.
        size: Height and width of the convolution's input.
        kind: The convolution's.
        tensors: Its own, by role, in float64 on the CPU.
        front: See `Front`.
    """
    parts = [factor_taps(part, image_count, size) for part in weight_gradient.chunk(groups)]
    found = [_even(part) for part in parts if part is not None]
    if len(found) < groups:
        return None
    inputs, cotangents = (torch.stack([getattr(one, name) for one in found]) for name in ("inputs", "cotangents"))
    derivatives = _in_front(cotangents, size, kind, tensors, front.scale)
    try:
        spans = _spans(inputs, front)
        links = None if spans is None else _linked(spans, derivatives, _shut(inputs))
    except RuntimeError:  # singular
        return None
    if links is None:
        return None
    own = torch.einsum("gab,gbpc->gapc", torch.linalg.inv(links).transpose(1, 2), inputs)
    theirs = torch.einsum("gab,gbpc->gapc", links, cotangents)
    own, theirs = (one.permute(1, 2, 0, 3).flatten(2) for one in (own, theirs))
    return Factors(own, theirs, max(one.misfit for one in found), max(one.leak for one in found))


def _even(factors: Factors) -> Factors:
    """With inputs of images that are orthonormal to each other: every group has the same size."""
    count = len(factors.inputs)
    orthonormal, triangle = torch.linalg.qr(factors.inputs.reshape(count, -1).T)
    inputs = orthonormal.T.reshape(factors.inputs.shape)
    cotangents = (triangle @ factors.cotangents.reshape(count, -1)).reshape(factors.cotangents.shape)
    return Factors(inputs, cotangents, factors.misfit, factors.leak)


def _in_front(
    cotangents: Float[Tensor, "group image place output"],
    size: tuple[int, int],
    kind: Kind,
    tensors: Mapping[str, Tensor],
    scale: Float[Tensor, " channel"],
) -> Float[Tensor, "group image place group_channel"]:
    """``s W^T * Delta``, mixed as the cotangents of each group are."""
    groups, images = cotangents.shape[:2]
    maps = cotangents.permute(1, 0, 3, 2).reshape(images, -1, *size)
    (by_input,) = kind.cotangents(maps, [maps.new_zeros(images, len(scale), *size)], tensors)
    scaled = by_input * scale[:, None, None]
    return scaled.reshape(images, groups, -1, size[0] * size[1]).permute(1, 0, 3, 2)


def _shut(inputs: Float[Tensor, "group image place channel"]) -> Bool[Tensor, "group place channel"]:
    """Units that are zero in every mixture."""
    typical = inputs.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return (inputs.abs() <= _SHUT * typical).all(dim=1)


def _spans(
    inputs: Float[Tensor, "group image place channel"], front: Front
) -> Float[Tensor, "place image group channel"] | None:
    """For each place what spans the derivatives of all images there, over the channels of all groups."""
    groups, images, places, channels = inputs.shape
    vectors, leak = leading_range(front.gradient, images * places)
    if not leak < _LARGEST_GAP:
        return None
    shut = _shut(inputs).permute(1, 0, 2).flatten(1)
    found = []
    for place in range(places):
        _, values, right = torch.linalg.svd(vectors[shut[place]], full_matrices=True)
        enough = len(values) == vectors.shape[1]
        open_value = float(values[-images]) if enough else 0.0
        if places > 1 and not (enough and open_value < _LARGEST_GAP * float(values[-images - 1])):
            return None
        found.append((vectors @ right[-images:].T).T.reshape(images, groups, channels))
    return torch.stack(found)


def _linked(
    spans: Float[Tensor, "place image group channel"],
    derivatives: Float[Tensor, "group image place channel"],
    shut: Bool[Tensor, "group place channel"],
) -> Float[Tensor, "group image image"] | None:
    """What brings the cotangents of each group under one mixing."""
    places, images, groups, _ = spans.shape
    blocks = spans.new_zeros(places, groups, images, images)
    trust = spans.new_zeros(places, groups)
    for place in range(places):
        for group in range(groups):
            seen = ~shut[group, place]
            if int(seen.sum()) < images + _MORE:
                continue
            fitted = _fit(derivatives[group, :, place, seen], spans[place, :, group, seen])
            if fitted is not None:
                blocks[place, group], trust[place, group] = fitted[0], 1 / max(fitted[1], _EXACT)
    if not bool((trust.sum(dim=0) > 0).all()):
        return None
    return _common(blocks, trust / trust.max())


def _fit(
    known: Float[Tensor, "image unit"], wanted: Float[Tensor, "image unit"]
) -> tuple[Float[Tensor, "image image"], float] | None:
    """What takes the known rows to the wanted ones at the most units, and what it leaves of these, relative; None where
    no more agree than decide it."""
    images, units = known.shape
    random = torch.Generator().manual_seed(0)
    some = torch.rand(_TRIES, units, generator=random).argsort(dim=1)[:, :images]
    square, given = (rows[:, some].transpose(0, 1) for rows in (known, wanted))
    found = given @ torch.linalg.inv_ex(square)[0]
    size = wanted.norm(dim=0).median().clamp_min(1e-300)
    left = (wanted - found @ known).norm(dim=1) / size
    agreeing = (left < _SAME).sum(dim=1)
    best = int(agreeing.argmax())
    if int(agreeing[best]) < images + _MORE:
        return None
    inside = left[best] < _SAME
    block = torch.linalg.lstsq(known[:, inside].T, wanted[:, inside].T, driver="gelsd").solution.T
    return block, float((wanted - block @ known)[:, inside].norm(dim=0).mean() / size)


def _common(
    blocks: Float[Tensor, "place group image image"], trust: Float[Tensor, "place group"]
) -> Float[Tensor, "group image image"] | None:
    """The right factors of blocks that are products of one matrix of their place and one of their group."""
    _, groups, images, _ = blocks.shape
    wide = blocks.permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
    right = torch.linalg.svd(wide, full_matrices=False)[2][:images].reshape(images, groups, images).transpose(0, 1)
    weights = trust
    left = blocks[:, 0]
    for _ in range(_REWEIGHTED):
        scaled = weights[:, :, None, None]
        left = torch.linalg.solve(
            torch.einsum("pg,gab,gcb->pac", weights, right, right),
            torch.einsum("pgab,gcb->pca", scaled * blocks, right),
        ).transpose(1, 2)
        right = torch.linalg.solve(
            torch.einsum("pg,pab,pac->gbc", weights, left, left),
            torch.einsum("pab,pgac->gbc", left, scaled * blocks),
        )
        off = (blocks - torch.einsum("pab,gbc->pgac", left, right)).flatten(2).norm(dim=2)
        relative = off / blocks.flatten(2).norm(dim=2).clamp_min(1e-300)
        weights = trust / relative.clamp_min(1e-6)
        weights = weights / weights.max()
        size = right.norm() / right.numel() ** 0.5
        right = right / size
    return right if bool(torch.isfinite(right).all()) else None

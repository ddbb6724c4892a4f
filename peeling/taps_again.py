"""By how much the noise of a weight gradient moves what its taps gave: the error of each image's input and cotangent.

What input and cotangent leave of the gradient shows its noise. As much again is added to it, both are solved anew from
where they are, and the images are told apart anew by the units that are shut. What moves is not known: images that are
like each other, units that few images tell apart, and cotangents of images that the network is sure of, which are small
beside the others'. Which units are shut stays as it is here: what hangs on that is stated beside it (`images_mixed`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .images_apart import Apart, without_others
from .layers import rounding
from .taps import refine, without
from .taps_weighted import WeightedTaps


def apart_again(
    weight_gradient: Float[Tensor, "output group_channel row column"],
    apart: Apart,
    image_count: int,
    size: tuple[int, int],
    groups: int = 1,
    weighted: WeightedTaps | None = None,
) -> tuple[Float[Tensor, " image"], Float[Tensor, " image"]]:
    """Estimated relative errors of each image's input and cotangent, with what is left mixed of the images; infinite
    where nothing came of it.

    Args:
        weight_gradient: As captured, in the type it was sent in.
        apart: What it was taken apart into.
        image_count: Of the batch.
        size: Height and width of the convolution's input.
        groups: That its channels are in.
        weighted: Where entries are not all known as well.
    """
    unknown = torch.full((image_count,), torch.inf, dtype=torch.float64)
    try:
        # Around what was found, so that only the noise moves it.
        found = _shaken(weight_gradient, apart, image_count, size, groups, weighted)
    except RuntimeError:
        return unknown, unknown
    if found is None:
        return unknown, unknown
    moved_inputs, moved_cotangents = (rows.reshape(image_count, -1) for rows in found)
    flat, across = apart.inputs.flatten(1), apart.cotangents.flatten(1)
    mixing = without_others(moved_inputs, ~apart.is_open.flatten(1))
    if not bool(torch.isfinite(mixing).all()) or not float(torch.linalg.cond(mixing)) < 1 / torch.finfo().eps:
        return unknown, unknown
    moved_inputs = mixing @ moved_inputs
    scale = moved_inputs.norm(dim=1) / flat.norm(dim=1)
    moved_cotangents = torch.linalg.inv(mixing).T @ moved_cotangents * scale[:, None]
    moved_inputs = moved_inputs / scale[:, None]
    pairs = ((moved_inputs, flat, apart.mixed), (moved_cotangents, across, apart.lacking))
    own, theirs = (
        ((moved - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-300)).maximum(mixed)
        for moved, before, mixed in pairs
    )
    return own, theirs


def _shaken(
    weight_gradient: Tensor,
    apart: Apart,
    image_count: int,
    size: tuple[int, int],
    groups: int,
    weighted: WeightedTaps | None,
) -> tuple[Tensor, Tensor] | None:
    """Inputs and cotangents with as much noise again; None where they are singular."""
    inputs, cotangents = (rows.flatten(0, 1) for rows in (apart.inputs, apart.cotangents))
    if weighted is not None:
        return weighted.shaken(inputs, cotangents)
    gradient = weight_gradient.detach().cpu().double()
    left = without(gradient, inputs, cotangents, image_count, size, groups)
    free = inputs.numel() + cotangents.numel() - groups * image_count**2
    share = (gradient.numel() / max(gradient.numel() - free, 1)) ** 0.5
    length = float(gradient.square().mean().sqrt())
    noise = max(share * float(left.square().mean().sqrt()), rounding(weight_gradient) * length)
    random = torch.Generator().manual_seed(0)
    off = noise * torch.randn(gradient.shape, generator=random, dtype=torch.float64)
    found = refine(gradient - left + off, cotangents, image_count, size, groups)
    return None if found is None else found[:2]

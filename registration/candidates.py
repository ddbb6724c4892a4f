"""What `register` was given, checked: bad seeds are left out by name, bad input gets a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .config import RegistrationError

_SMALLEST_SIDE = 8
_LARGEST_PIXEL = 1e15  # squares of larger ones leave the range of float32


@dataclass(frozen=True)
class Usable:
    """Candidates fit for registration, with the seeds they come from and why others were left out."""

    images: Float[Tensor, "seed image channel height width"]
    weights: Float[Tensor, " seed"]
    seeds: tuple[int, ...]
    left_out: tuple[str, ...]


def check(candidates: Tensor, seeds: Sequence[int] | None, weights: Tensor | None) -> Usable:
    """The finite candidates, in float32, with weights that sum to 1.

    Raises:
        RegistrationError: not a (seeds, images, channels, height, width) tensor of at least 8 px; seeds or weights that
            do not fit it; no finite candidate at all.
    """
    images = _as_images(candidates)
    names = _as_seeds(seeds, images.shape[0])
    share = _as_weights(weights, images)
    # The least and the largest pixel, not a mask of all: candidates are large, and NaN is in both. One candidate after
    # the other, since torch is several times slower along a dimension.
    extremes = torch.stack([torch.stack(candidate.aminmax()) for candidate in images])
    usable = (extremes.abs() <= _LARGEST_PIXEL).all(1).tolist()
    reasons: list[str] = []
    kept: list[int] = []
    for position, (finite, weight) in enumerate(zip(usable, share.tolist(), strict=True)):
        if not finite:
            reasons.append(f"seed {names[position]}: its candidate holds NaN, infinite or larger than 1e15 pixels")
        elif weight <= 0:
            reasons.append(f"seed {names[position]}: its weight is 0")
        else:
            kept.append(position)
    if not kept:
        raise RegistrationError(f"no candidate can be used ({'; '.join(reasons)}): restart these seeds")
    index = torch.tensor(kept, device=images.device)
    return Usable(
        images.index_select(0, index) if reasons else images,
        share[index] / share[index].sum(),
        tuple(names[i] for i in kept),
        tuple(reasons),
    )


def _as_images(candidates: object) -> Tensor:
    if not isinstance(candidates, Tensor):
        parts = candidates if isinstance(candidates, list | tuple) else ()
        shapes = sorted({tuple(part.shape) for part in parts if isinstance(part, Tensor)})
        raise RegistrationError(
            f"candidates came as {type(candidates).__name__} (shapes {shapes}): bring all seeds to one size and pass "
            "one tensor (seeds, images, channels, height, width), for example by torch.stack"
        )
    if candidates.ndim != 5 or 0 in candidates.shape:
        raise RegistrationError(
            f"candidates have shape {tuple(candidates.shape)}: pass (seeds, images, channels, height, width), "
            "each at least 1"
        )
    if min(candidates.shape[-2:]) < _SMALLEST_SIDE:
        height, width = candidates.shape[-2:]
        raise RegistrationError(f"candidates are {height} x {width} px: pass at least {_SMALLEST_SIDE} px on each side")
    if candidates.is_complex() or candidates.dtype == torch.bool:
        raise RegistrationError(f"candidates are {candidates.dtype}: pass pixels as real numbers, for example float32")
    return candidates.detach().to(torch.float32)


def _as_seeds(seeds: Sequence[int] | None, count: int) -> tuple[int, ...]:
    names = tuple(range(count)) if seeds is None else tuple(int(seed) for seed in seeds)
    if len(names) != count or len(set(names)) != count:
        raise RegistrationError(f"seeds {names} do not name {count} candidates: pass one distinct seed per candidate")
    return names


def _as_weights(weights: Tensor | None, images: Tensor) -> Float[Tensor, " seed"]:
    if weights is None:
        return images.new_ones(images.shape[0])
    given = torch.as_tensor(weights, dtype=torch.float32, device=images.device).detach()
    if given.shape != images.shape[:1] or not bool(torch.isfinite(given).all()) or bool((given < 0).any()):
        raise RegistrationError(
            f"weights {given.tolist()} do not fit {images.shape[0]} candidates: pass one finite number >= 0 for each"
        )
    return given

"""What `register` was given, checked: bad seeds are left out by name, bad input gets a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .config import RegistrationError

SMALLEST_SIDE = 8
"""Pixels of the shorter side below which an image holds nothing that a warp could be read off."""
_LARGEST_PIXEL = 1e15  # squares of larger ones leave the range of float32


@dataclass(frozen=True)
class LeftOut:
    """A seed whose candidate has no part in a consensus; as text it is one line for people."""

    seed: int
    reason: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.reason}"


@dataclass(frozen=True)
class Usable:
    """Candidates fit for registration, with the seeds they come from and why others were left out."""

    images: Float[Tensor, "seed image channel height width"]
    weights: Float[Tensor, " seed"]
    """Share of each in every mean: equal ones that sum to 1."""
    seeds: tuple[int, ...]
    left_out: tuple[LeftOut, ...]


def check(candidates: Tensor, seeds: Sequence[int] | None) -> Usable:
    """The finite candidates, in float32.

    Raises:
        RegistrationError: not a (seeds, images, channels, height, width) tensor; seeds that do not fit it; no finite
            candidate at all.
    """
    images = _as_images(candidates)
    names = _as_seeds(seeds, images.shape[0])
    # The least and the largest pixel, not a mask of all: candidates are large, and NaN is in both. One candidate after
    # the other, since torch is several times slower along a dimension.
    extremes = torch.stack([torch.stack(candidate.aminmax()) for candidate in images])
    usable = (extremes.abs() <= _LARGEST_PIXEL).all(1).tolist()
    left_out: list[LeftOut] = []
    kept: list[int] = []
    for position, finite in enumerate(usable):
        if finite:
            kept.append(position)
        else:
            left_out.append(LeftOut(names[position], "its candidate holds NaN, infinite or larger than 1e15 pixels"))
    if not kept:
        raise RegistrationError(f"no candidate can be used ({'; '.join(map(str, left_out))}): restart these seeds")
    return Usable(
        images.index_select(0, torch.tensor(kept, device=images.device)) if left_out else images,
        images.new_ones(len(kept)) / len(kept),
        tuple(names[i] for i in kept),
        tuple(left_out),
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
    if candidates.is_complex() or candidates.dtype == torch.bool:
        raise RegistrationError(f"candidates are {candidates.dtype}: pass pixels as real numbers, for example float32")
    return candidates.detach().to(torch.float32)


def _as_seeds(seeds: Sequence[int] | None, count: int) -> tuple[int, ...]:
    names = tuple(range(count)) if seeds is None else tuple(int(seed) for seed in seeds)
    if len(names) != count or len(set(names)) != count:
        raise RegistrationError(f"seeds {names} do not name {count} candidates: pass one distinct seed per candidate")
    return names

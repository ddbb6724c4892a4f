"""How far off a joint solution before batch statistics may be: by a second one, from elsewhere.

It begins away from the first by a share of it, so that what no equation tells is left apart by as much as that, and
all that it rests on is off by as much as the first left of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .statistics_equations import Reader
from .statistics_joint import Together, solve_together
from .statistics_levels import levelled

AGAIN = 6
"""Steps of the second solution, at most."""
# How far from the first it begins, as a share of it.
_APART = 0.3
# It ends where it leaves so many times what it is off by.
_ENOUGH = 3.0
# Two solutions are nearer to each other than to the truth, about so many times.
_STRUCTURED = 2.0


def told_entries(readers: Sequence[Reader], heard: Sequence[Bool[Tensor, " _"]]) -> int:
    """Of gradients and of known outputs: no fewer than the independent ones.

    Args:
        readers: Convolutions that read the value.
        heard: Of each its output channels whose gradient counts.
    """
    by_gradient = sum(int(some.sum()) * one.gradient[0].numel() for one, some in zip(readers, heard, strict=True))
    return by_gradient + sum(int(one.is_told.sum()) for one in readers)


def solved_again(readers: Sequence[Reader], heard: Sequence[Bool[Tensor, " _"]], found: Together) -> Together:
    """The second solution.

    Args:
        readers: Convolutions that read the value.
        heard: Of each its output channels whose gradient counts.
        found: The first.
    """
    # The unknowns have taken up their share of what is left.
    entries = told_entries(readers, heard)
    share = (entries / max(entries - found.values.numel(), 1)) ** 0.5
    random = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random, dtype=torch.float64)

    shaken = []
    for one in readers:
        off = max(one.rounding, share * found.gradient_misfit)
        spread = one.spread.clamp_min(share * found.output_misfit * float(one.told[one.is_told].square().mean().sqrt()))
        shaken.append(one.shaken(off, spread, noise))
    size = found.values.square().mean().sqrt()
    start = found.values + _APART * size * noise(found.values)
    start = start * (size / start.square().mean().sqrt())
    enough = _ENOUGH * share * found.misfit
    return solve_together(shaken, heard, tuple(found.values.shape), start, AGAIN, enough)


def apart(
    values: Float[Tensor, "image channel height width"], other: Together, levels: Sequence[Float[Tensor, " place"]]
) -> Float[Tensor, "image channel height width"]:
    """How far the first solution may be from the truth, entry by entry, but for its scale.

    Args:
        values: Of the first, with its levels.
        other: The second.
        levels: Classes of places whose level no equation tells.
    """
    elsewhere = levelled(other.values, levels, noise_between(values, other, levels))[0]
    return _STRUCTURED * (_of_scale(elsewhere, values) - values)


def noise_between(
    values: Float[Tensor, "image channel height width"], other: Together, levels: Sequence[Float[Tensor, " place"]]
) -> Float[Tensor, "image channel height width"]:
    """How far the two are apart beside their scale and the levels of classes that no equation tells.

    Args:
        values: Of the first.
        other: The second.
        levels: The classes.
    """
    difference = _of_scale(other.values, values) - values
    for level in levels:
        chosen = level.reshape(len(values), 1, *values.shape[2:])
        mean = (difference * chosen).sum(dim=(0, 2, 3), keepdim=True) / level.sum()
        difference = difference - mean * chosen
    return _STRUCTURED * difference


def _of_scale(elsewhere: Tensor, values: Tensor) -> Tensor:
    """Each has the scale that it began at, which no equation tells: its error stands for itself."""
    return elsewhere * ((elsewhere * values).sum() / elsewhere.square().sum().clamp_min(1e-300))

"""How many visits of images a weight delta shows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# Singular values drop by at least this much behind the last place; smaller than this share of the first they are none.
_DROP, _LEAST_SEEN = 0.05, 1e-6


class Seen(NamedTuple):
    """At least so many."""

    visits: int
    batches: int
    """Whose derivatives each add up to zero; 0 where none were asked for."""


def visits_seen(
    weight_gradient: Float[Tensor, "output input row column"], size: tuple[int, int], balanced: bool = False
) -> Seen | None:
    """How many visits a delta is a sum over, by the rank of a convolution's taps: each has as many as it has places.

    There are at least as many. What a later visit of the same image adds is of the order of the square of the steps'
    relative size, so that after small steps, of images learned already or of equal ones visits merge.

    Args:
        weight_gradient: Of all steps together.
        size: Height and width of the convolution's input.
        balanced: Whether the derivatives of each batch add up to zero, in front of batch norm on batch statistics:
            then their rank is smaller by the number of batches.

    Returns:
        None where the rank does not show, or is not that of whole visits.
    """
    gradient = weight_gradient.detach().cpu().double()
    found = []
    for taps in (gradient.flatten(1), gradient.transpose(0, 1).flatten(1)):
        # A channel that no visit opened has no gradient, and is no drop of the others.
        taps = taps[taps.any(dim=1)]
        if len(taps) < 2 or not bool(torch.isfinite(taps).all()):
            return None
        singular = torch.linalg.eigvalsh(taps @ taps.T).clamp_min(0).sqrt().flip(0)
        drops = singular[1:] / singular[:-1].clamp_min(1e-300)
        # Beyond what float32 keeps there is nothing but rounding, which drops at will.
        drops[singular[:-1] < _LEAST_SEEN * singular[0]] = 1.0
        place = int(drops.argmin())
        if not float(drops[place]) < _DROP:
            return None
        found.append(place + 1)
    visits, rest = divmod(found[1], size[0] * size[1])
    batches = found[1] - found[0]
    if rest or not (1 <= batches <= visits if balanced else batches == 0):
        return None
    return Seen(visits, batches)

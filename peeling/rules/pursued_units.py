"""A few units on the wrong side, found one after another by what they leave of a weight gradient.

A unit that is on the wrong side leaves of its channel's row of the weight gradient the patch at its place, times the
derivative that it lets through or keeps back, and both are known. So the unit is found whose change takes most away,
then the next: matching pursuit (Mallat and Zhang, IEEE Trans. Signal Process. 41, 1993) with lengths that are given.
Solving the derivative back (`mended_units`) asks for as many equations as places; this asks that equations outnumber
the wrong units so far that no other units could explain them by chance.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Units of one channel, and equations that each asks for, in logarithms of the places that it is chosen among: from 2 on
# chance explains nothing by as few.
_MOST, _FOR_EACH = 8, 4.0
# Of the squares that are left, what a unit has to take away; of as many alike units each takes an eighth.
_WORTH = 0.1


def pursued_units(
    patches: Float[Tensor, "place equation"],
    left: Float[Tensor, "equation channel"],
    change: Float[Tensor, "place channel"],
    explained: float,
) -> Bool[Tensor, "place channel"]:
    """Units to switch; none of a channel that no few of them explain.

    Args:
        patches: Of the convolution's input.
        left: Of the weight gradient: what was made less what was sent.
        change: Of the derivative at each place, if its unit is switched.
        explained: What has to be left of a channel, as a share of what was left before.
    """
    wanted = explained * left.norm(dim=0)
    size, channels = patches.square().sum(dim=1)[:, None], torch.arange(left.shape[1])
    switched = torch.zeros_like(change, dtype=torch.bool)
    for _ in range(min(_MOST, int(len(left) / (_FOR_EACH * math.log(max(len(patches), 2)))))):
        gain = -(2 * change * (patches @ left) + change.square() * size).masked_fill(switched, 0)
        most, place = gain.max(dim=0)
        going = most > _WORTH * left.square().sum(dim=0)
        if not bool(going.any()):
            break
        left = left + patches[place].T * (change[place, channels] * going)
        switched[place[going], channels[going]] = True
    return switched & (left.norm(dim=0) <= wanted)

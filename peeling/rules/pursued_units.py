"""A few units on the wrong side, found one after another by what they leave of a weight gradient.

A unit that is on the wrong side leaves of its channel's row of the weight gradient the patch at its place, times the
derivative that it lets through or keeps back, and both are known. So the unit is found whose change takes most away,
then the next: matching pursuit (Mallat and Zhang, IEEE Trans. Signal Process. 41, 1993) with lengths that are given.
It asks for no more than that equations outnumber the wrong units by far, where solving the derivative back
(`mended_units`) asks for as many equations as places.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Of one channel.
_MOST = 8


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
    for _ in range(_MOST):
        gain = -(2 * change * (patches @ left) + change.square() * size).masked_fill(switched, 0)
        most, place = gain.max(dim=0)
        going = (left.norm(dim=0) > wanted) & (most > 0)
        if not bool(going.any()):
            break
        left = left + patches[place].T * (change[place, channels] * going)
        switched[place[going], channels[going]] = True
    return switched & (left.norm(dim=0) <= wanted)

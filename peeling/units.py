"""Which units of a ReLU were open, and how sure that is, from activations behind it that are known up to an error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Units below so many uncertainties may be open or shut.
_DOUBTFUL = 20.0
# How many deviations an uncertainty is, and the degrees of freedom of the errors' distribution, Student's: over 1e5
# shut units the largest error was 7 deviations.
_DEVIATIONS, _FREEDOM = 4.0, 12.0
# Units this close to zero, as a share of the largest, say how crowded a ReLU's output is there.
_CROWD = 0.05
# Fewer than so many units on the wrong side are expected: then there are none.
_FEW = 0.01


@dataclass(frozen=True)
class Units:
    """What is known of each unit of a ReLU; all tensors have the shape of its output, with the batch in front."""

    is_open: Tensor
    """The likelier side."""
    wrong: Tensor
    """The probability that it is the other side, up to one half; 0 where another check has confirmed it."""
    doubtful: Tensor
    """Units that may be switched at all."""

    def reshaped(self, *shape: int) -> Units:
        """The same units in another shape of one image's output."""
        given = (self.is_open, self.wrong, self.doubtful)
        return Units(*(tensor.reshape(len(tensor), *shape) for tensor in given))

    def both(self, other: Units) -> Units:
        """A unit that has to pass two ReLUs, one behind the other."""
        return Units(self.is_open & other.is_open, self.wrong.maximum(other.wrong), self.doubtful | other.doubtful)

    def expected_error(self, cotangent: Tensor) -> float:
        """Length of what the units on the wrong side are expected to add to, or take from, a cotangent, given for all
        units as if they were open. They cannot be seen, but how many there are follows from how crowded the units just
        above the line are; where none is expected it is 0."""
        if float(self.wrong.sum()) < _FEW:
            return 0.0
        return float((self.wrong * cotangent.square()).sum().sqrt())


def no_units(like: Tensor) -> Units:
    """Of a path without a ReLU: everything passes."""
    return Units(torch.ones_like(like, dtype=torch.bool), torch.zeros_like(like), torch.zeros_like(like).bool())


def estimate_units(activations: Tensor, uncertainty: Tensor) -> Units:
    """Open or shut, by the odds of two explanations of each value a.

    Either the unit was shut and a is nothing but error, or it was open with some value y > 0 and a is y with the same
    error. Shut units are counted, and the density of open ones just above zero is that of the nearest ones that are
    surely open. With deviation s, density d of the errors (Student's) and F their distribution function (a normal one)
    the odds are ``(open per unit of value) s F(a / s) : (number shut) d(a / s)``.

    Args:
        activations: The ReLU's output, with errors on both sides of zero where it was shut.
        uncertainty: The largest error to be expected of each.
    """
    largest = float(activations.max()) if activations.numel() else 0.0
    if not 0 < largest < math.inf:
        return Units(activations > math.inf, torch.full_like(activations, 0.5), torch.ones_like(activations).bool())
    surely = activations > 2 * uncertainty
    crowd = surely & (activations <= 2 * uncertainty + _CROWD * largest)
    density = max(int(crowd.sum()), 1) / (_CROWD * largest)
    shut = max(int((~surely).sum()), 1)
    deviation = (uncertainty / _DEVIATIONS).clamp_min(1e-300)
    place = activations / deviation
    by_open = (density * deviation).log() + torch.special.log_ndtr(place)
    odds = by_open - math.log(shut) - _log_density(place)
    return Units(odds > 0, (-odds.abs()).sigmoid(), activations <= _DOUBTFUL * uncertainty)


def _log_density(place: Tensor) -> Tensor:
    """Of Student's distribution."""
    half = (_FREEDOM + 1) / 2
    scale = math.lgamma(half) - math.lgamma(_FREEDOM / 2) - math.log(_FREEDOM * math.pi) / 2
    return scale - half * (place.square() / _FREEDOM).log1p()

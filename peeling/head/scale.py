"""The scale of a gradient whose size is only roughly known, such as a weight delta over a guessed learning rate."""

from __future__ import annotations

import math
from dataclasses import replace

import scipy
import torch
from jaxtyping import Int
from torch import Tensor

from ...capture.labels.final_layer import FinalLayer
from .fixed_point import peel_head

# How far the true scale may be from the guess, as a natural logarithm, and how many places are looked at first.
_REACH = 1.5
_PLACES = 13
_EXACT = 1e-8
# A final layer that contradicts itself by more than this at every scale does not tell the scale.
_LARGEST_ERROR = 1e-2


def find_scale(layer: FinalLayer, labels: Int[Tensor, " batch"]) -> float | None:
    """What the gradient has to be multiplied with, or None where it does not tell.

    The final layer's gradient is ``D^T F`` with ``D = (softmax(F W^T + b) - Y) / B`` (see ``peel_head``): its row space
    gives the direction of each row of D at any scale, and the softmax of the features ties the features' size to it.
    With labels that differ and fewer images than classes all of it fits together at the true scale alone, and the error
    of ``peel_head`` rises in proportion on either side.

    Args:
        layer: With a gradient within a factor of 4 of its true size.
        labels: The batch's labels.
    """
    if len(set(labels.tolist())) < len(labels):
        return None
    # Rounding would be a floor under the error on which the scale is open.
    exact = replace(layer, stored=torch.float64)

    def error(exponent: float) -> float:
        found = peel_head(exact.scaled(math.exp(exponent)), labels).error
        return math.log(max(found, 1e-300)) if math.isfinite(found) else math.inf

    places = torch.linspace(-_REACH, _REACH, _PLACES).tolist()
    best = min(places, key=error)
    if not math.isfinite(error(best)):
        return None
    width = places[1] - places[0]
    found = scipy.optimize.minimize_scalar(
        error, bounds=(best - width, best + width), method="bounded", options={"xatol": _EXACT}
    )
    return math.exp(found.x) if found.fun < math.log(_LARGEST_ERROR) else None

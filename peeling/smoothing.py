"""How far the labels are smoothed, where nobody said so: the final layer fits together at one value alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import scipy
from jaxtyping import Int
from torch import Tensor

from ..capture import OneLook
from ..capture.labels.final_layer import FinalLayer
from .head.fixed_point import peel_head
from .head.unmixed import misfit_at

_PLACES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
_EXACT = 1e-7
# What is left at the right value, and how much better that must be than no smoothing.
_LARGEST_ERROR, _BETTER = 1e-3, 0.1
# A value this near to one of few digits is that one.
_NEAR = 1e-4
# Numbers in a layer beyond which a search by iteration takes too long.
_LARGEST_LAYER = 2**17


def find_smoothing(
    layer: FinalLayer, labels: Int[Tensor, " batch"], scaled: bool = False, look: OneLook | None = None
) -> float | None:
    """The smoothing of the labels, or None where the final layer does not tell one, or none that is needed.

    Args:
        layer: The final layer, with the gradient of the mean loss.
        labels: The batch's.
        scaled: Whether the gradient's scale is open.
        look: At the layer, where others ask it too.
    """
    error = _error(layer, labels, scaled, look or OneLook())
    if error is None:
        return None
    errors = {place: error(place) for place in _PLACES}
    best = min(errors, key=lambda place: errors[place])
    if not math.isfinite(errors[best]):
        return None
    around = [place for place in _PLACES if place != best]
    low = max((place for place in around if place < best), default=0.0)
    high = min((place for place in around if place > best), default=0.9)
    found = scipy.optimize.minimize_scalar(error, bounds=(low, high), method="bounded", options={"xatol": _EXACT})
    value, left = float(found.x), float(found.fun)
    near = round(value, 3)
    if abs(value - near) < _NEAR:
        value = near
    if value == 0 or not left < min(_LARGEST_ERROR, _BETTER * errors[0.0]):
        return None
    return value


def _error(layer: FinalLayer, labels: Tensor, scaled: bool, look: OneLook) -> Callable[[float], float] | None:
    if layer.non_negative:
        unmixed = look.unmix(layer.sent, len(labels), smoothing=1.0)
        if unmixed is not None:
            return lambda smoothing: misfit_at(replace(layer, smoothing=smoothing), unmixed, scaled)
    few = len(labels) < len(layer.weight) - 1 and len(set(labels.tolist())) == len(labels)
    if scaled or not few or layer.weight.numel() > _LARGEST_LAYER:
        return None
    return lambda smoothing: peel_head(replace(layer, smoothing=smoothing), labels).error

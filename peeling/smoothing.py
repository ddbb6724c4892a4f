"""How far the labels are smoothed, where nobody said so: the final layer fits together at one value alone."""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxtyping import Int
from torch import Tensor, nn

from ..capture import CapturedUpdate, Unmix, find_final_layer, unmix
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
    update: CapturedUpdate, model: nn.Module, labels: Int[Tensor, " batch"], scaled: bool = False, apart: Unmix = unmix
) -> float | None:
    """The smoothing of the labels, or None where the final layer does not tell one, or none that is needed.

    Args:
        update: A gradient of the mean loss.
        model: The server's model.
        labels: The batch's.
        scaled: Whether the gradient's scale is open.
        apart: ``unmix``, or an `UnmixOnce` that others ask too.
    """
    from scipy.optimize import minimize_scalar

    error = _error(update, model, labels, scaled, apart)
    if error is None:
        return None
    errors = {place: error(place) for place in _PLACES}
    best = min(errors, key=lambda place: errors[place])
    if not math.isfinite(errors[best]):
        return None
    around = [place for place in _PLACES if place != best]
    low = max((place for place in around if place < best), default=0.0)
    high = min((place for place in around if place > best), default=0.9)
    found = minimize_scalar(error, bounds=(low, high), method="bounded", options={"xatol": _EXACT})
    value, left = float(found.x), float(found.fun)
    near = round(value, 3)
    if abs(value - near) < _NEAR:
        value = near
    if value == 0 or not left < min(_LARGEST_ERROR, _BETTER * errors[0.0]):
        return None
    return value


def _error(
    update: CapturedUpdate, model: nn.Module, labels: Tensor, scaled: bool, apart: Unmix
) -> Callable[[float], float] | None:
    layer = find_final_layer(update, model)
    name = f"{layer.name}.weight" if layer.name else "weight"
    if layer.non_negative:
        unmixed = apart(update.gradients[name], len(labels), smoothing=1.0)
        if unmixed is not None:
            return lambda smoothing: misfit_at(layer.weight, layer.bias, unmixed, smoothing, scaled)
    few = len(labels) < len(layer.weight) - 1 and len(set(labels.tolist())) == len(labels)
    if scaled or not few or layer.weight.numel() > _LARGEST_LAYER:
        return None
    given = layer.weight, layer.bias, update.gradients[name], layer.bias_gradient
    return lambda smoothing: peel_head(*given, labels, smoothing).error

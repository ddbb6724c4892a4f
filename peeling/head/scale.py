"""The scale of a gradient whose size is only roughly known, such as a weight delta over a guessed learning rate."""

from __future__ import annotations

import math

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ...capture import CapturedUpdate, find_final_layer
from .fixed_point import peel_head

# How far the true scale may be from the guess, as a natural logarithm, and how many places are looked at first.
_REACH = 1.5
_PLACES = 13
_EXACT = 1e-8
# A final layer that contradicts itself by more than this at every scale does not tell the scale.
_LARGEST_ERROR = 1e-2


def find_scale(update: CapturedUpdate, model: nn.Module, labels: Int[Tensor, " batch"]) -> float | None:
    """What the gradient has to be multiplied with, or None where it does not tell.

    The final layer's gradient is ``D^T F`` with ``D = (softmax(F W^T + b) - Y) / B`` (see ``peel_head``): its row space
    gives the direction of each row of D at any scale, and the softmax of the features ties the features' size to it.
    With labels that differ and fewer images than classes all of it fits together at the true scale alone, and the error
    of ``peel_head`` rises in proportion on either side.

    Args:
        update: A gradient, within a factor of 4 of its true size.
        model: The server's model.
        labels: The batch's labels.
    """
    from scipy.optimize import minimize_scalar

    if len(set(labels.tolist())) < len(labels):
        return None
    layer = find_final_layer(update, model)

    def error(exponent: float) -> float:
        scaled = layer.scaled(math.exp(exponent))
        bias = scaled.bias_gradient
        found = peel_head(layer.weight, layer.bias, scaled.weight_gradient, bias, labels).error
        return math.log(max(found, 1e-300)) if math.isfinite(found) else math.inf

    places = torch.linspace(-_REACH, _REACH, _PLACES).tolist()
    best = min(places, key=error)
    if not math.isfinite(error(best)):
        return None
    width = places[1] - places[0]
    found = minimize_scalar(error, bounds=(best - width, best + width), method="bounded", options={"xatol": _EXACT})
    return math.exp(found.x) if found.fun < math.log(_LARGEST_ERROR) else None

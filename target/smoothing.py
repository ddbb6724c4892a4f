"""Smoothed labels: the final layer's features and outputs fit together at one smoothing alone."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor, nn

from ..capture import CapturedUpdate, OneLook, as_gradient, is_one_step, read
from ..peeling import find_smoothing
from .final_layer import softmax_layer
from .finding import Finding


def check_smoothing(
    update: CapturedUpdate, model: nn.Module, labels: Int[Tensor, " batch"], look: OneLook | None = None
) -> Finding:
    """The smoothing that the final layer shows, where it is another than the facts have.

    Args:
        update: What the client sent.
        model: The server's model.
        labels: The batch's.
        look: At the final layer, where others ask it too.
    """
    local = update.local
    if not is_one_step(update) or (local is not None and local.learning_rate is None):
        return Finding()
    plain, look = as_gradient(update, model), look or OneLook()
    layer = softmax_layer(plain, model, look)
    if layer is None or not layer.clean:
        return Finding()
    value = find_smoothing(layer, labels, scaled=update.facts.loss_scale.value is None, look=look)
    if value is None or value == update.facts.label_smoothing.value:
        return Finding()
    said = "" if update.facts.label_smoothing.assumed else ", whatever the client says"
    message = f"The labels are smoothed by {value:g}{said}: the final layer's features and outputs fit at it alone."
    facts = {"label_smoothing": read(value, "the final layer")}
    return Finding(facts=facts, messages=(message,), resolved=frozenset({"label_smoothing"}))

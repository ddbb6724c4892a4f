"""The sign of the update: a step in place of a gradient, or the server's weights less the client's."""

from __future__ import annotations

from torch import nn

from ..capture import CapturedUpdate, OneLook, as_gradient, is_one_step
from ..capture.labels.sign import Sign, read_sign
from .final_layer import softmax_layer
from .finding import Finding

_OPEN = (
    "more classes have a negative gradient at the final layer than the facts state images, which needs smoothed "
    "labels, more images or a reversed sign"
)


def check_sign(update: CapturedUpdate, model: nn.Module, look: OneLook | None = None) -> Finding:
    """That the sign is to be turned, where the final layer proves that it is reversed.

    Args:
        update: What the client sent.
        model: The server's model.
        look: At the final layer, where others ask it too.
    """
    local = update.local
    if not is_one_step(update) or (local is not None and local.learning_rate is None):
        return Finding()
    layer = softmax_layer(as_gradient(update, model), model, look or OneLook())
    if layer is None:
        return Finding()
    sign = read_sign(layer, update.image_count)
    if sign is Sign.OPEN:
        return Finding(contradictions={"label_smoothing": _OPEN})
    if sign is Sign.POSSIBLE:
        return Finding()
    message = (
        "The update has the sign of a step, not of a gradient (or is the server's weights less the client's): more "
        "classes have a negative gradient at the final layer than there are images. Its sign was turned."
    )
    return Finding(sign_turned=True, messages=(message,))

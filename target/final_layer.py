"""The final layer for a check: only where its gradient is that of a softmax, whose columns sum to zero."""

from __future__ import annotations

from torch import nn

from ..capture import CapturedUpdate, LabelError, OneLook, is_one_step, is_softmax
from ..capture.labels.final_layer import FinalLayer


def softmax_layer(update: CapturedUpdate, model: nn.Module, look: OneLook) -> FinalLayer | None:
    """The final layer with its gradient, where what follows from a softmax holds for it; None elsewhere.

    Args:
        update: A gradient, or the delta of one step whose learning rate is known.
        model: The server's model.
        look: At its final layer.
    """
    local = update.local
    if not is_one_step(update) or (local is not None and local.learning_rate is None):
        return None
    if not is_softmax(update, model):
        return None
    try:
        return look.final_layer(update, model)
    except LabelError:
        return None

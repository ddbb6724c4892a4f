"""A client whose dropout or stochastic depth was active: which units it left out, nobody but itself knows."""

from __future__ import annotations

from torch import nn

from ..capture import CapturedUpdate
from ..capture.decisive import draws_in_training
from .finding import Finding


def check_dropout(update: CapturedUpdate, model: nn.Module) -> Finding:
    """The attack runs the model without dropout, and cannot meet the gradient of a pass that had it.

    Args:
        update: What the client sent.
        model: The server's model.
    """
    if not update.facts.dropout.value or not draws_in_training(model, update.image_shape):
        return Finding()
    sentence = (
        "The client's dropout or stochastic depth was active. Which units it left out is not known, and the attack "
        "runs the model with all of them, so that its gradient cannot be met."
    )
    return Finding(limits=(sentence,))

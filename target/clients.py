"""Several clients in one update, where their images are not simply one batch."""

from __future__ import annotations

from torch import nn

from ..capture import CapturedUpdate
from ..capture.decisive import of_own_batches
from .finding import Finding


def check_clients(update: CapturedUpdate, model: nn.Module) -> Finding:
    """The attack takes the images of all clients for one batch of one client.

    Args:
        update: What the client sent.
        model: The server's model.
    """
    count = update.facts.clients.value
    # What local steps of each are worth is for `order_limits`: where images follow by taps they are no limit.
    if count == 1 or not of_own_batches(update, model):
        return Finding()
    sentence = (
        f"The update is the average of {count} clients, each with batch statistics or a clipping of its own, and the "
        "attack takes all images for those of one client, so that the update cannot be met."
    )
    return Finding(limits=(sentence,))

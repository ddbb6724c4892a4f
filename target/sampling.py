"""Local steps on batches that were drawn by chance: which image was in which step nobody knows, nor how many were."""

from __future__ import annotations

from torch import nn

from ..capture import CapturedUpdate
from .finding import Finding


def check_sampling(update: CapturedUpdate, model: nn.Module) -> Finding:
    """Several local steps can only be retraced where each took a batch of the size that the facts have.

    Args:
        update: What the client sent.
        model: The server's model.
    """
    local, sampling = update.local, update.facts.sampling.value
    if local is None or local.steps(update.image_count) == 1 or not sampling.poisson:
        return Finding()
    sentence = (
        f"The client drew the batch of each of its {local.steps(update.image_count)} local steps by chance (Poisson "
        "sampling), and the attack can only retrace batches of a given size."
    )
    return Finding(limits=(sentence,))

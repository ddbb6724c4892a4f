"""Whether the attack can evaluate the client's loss."""

from __future__ import annotations

from torch import nn

from ..capture import CapturedUpdate, is_known
from .finding import Finding


def check_loss(update: CapturedUpdate, model: nn.Module) -> Finding:
    """A loss that nobody here can evaluate is attacked as cross-entropy, which must not reassure anyone.

    Args:
        update: What the client sent.
        model: The server's model.
    """
    if is_known(update.loss):
        return Finding()
    sentence = (
        f"the client's loss, {update.loss!r}, is none that this attack can evaluate, and its gradient is matched with "
        "that of cross-entropy"
    )
    return Finding(contradictions={"loss": sentence}, messages=(f"{sentence[0].upper()}{sentence[1:]}.",))

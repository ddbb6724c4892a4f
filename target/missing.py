"""Gradients that the model trains and the update lacks."""

from __future__ import annotations

from torch import nn

from ..capture import CapturedUpdate
from .finding import Finding

# More names than so many are counted and not listed.
_LISTED = 4


def check_missing(update: CapturedUpdate, model: nn.Module) -> Finding:
    """A sentence on what the update lacks: what rests on it is left out, and the rest of the attack goes on.

    Args:
        update: What the client sent; all that it holds fits the model.
        model: The server's model.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    missing = [name for name in trained if name not in update.gradients]
    if not missing:
        return Finding()
    listed = ", ".join(missing[:_LISTED]) + (f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else "")
    message = (
        f"The update lacks the gradients of {len(missing)} of the {len(trained)} tensors that the model trains "
        f"({listed}): the attack goes on with the others."
    )
    return Finding(messages=(message,))

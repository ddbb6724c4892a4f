"""What the match leaves out of a gradient whose penalty on the weights was read off it."""

from __future__ import annotations

from torch import Tensor, nn

from ..capture import CapturedUpdate, Provenance
from .adaptation import Adaptation

# A sign pattern this near to the weights themselves is no direction of its own.
_LEAST = 1e-3


def allow_for_penalty(update: CapturedUpdate, model: nn.Module) -> Adaptation:
    """A penalty that was read off some layers was subtracted from all, and may spare others: each gradient is then
    compared only across the directions in which a penalty acts, one or two of its thousands.

    Args:
        update: What is attacked.
        model: The server's model.
    """
    if update.facts.penalty.provenance is not Provenance.READ:
        return Adaptation()
    weights = dict(model.named_parameters())
    return Adaptation(unmatched={name: _directions(weights[name].detach()) for name in update.gradients})


def _directions(weight: Tensor) -> tuple[Tensor, ...]:
    """Of the weights and of their signs."""
    found: tuple[Tensor, ...] = ()
    # Of a few numbers nothing would be left.
    if weight.numel() < 4:
        return found
    for direction in (weight, weight.sign()):
        length = direction.norm()
        rest = direction
        for other in found:
            rest = rest - (rest * other).sum() * other
        if float(length) > 0 and float(rest.norm()) > _LEAST * float(length):
            found = (*found, rest / rest.norm())
    return found

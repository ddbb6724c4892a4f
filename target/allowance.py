"""What the match allows for: penalty, scale and defence, as far as the update shows or the client states them."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..capture import CapturedUpdate, OneLook
from ..peeling import Anchor
from .adaptation import Adaptation
from .defence_evidence import allow_for_defence
from .penalty_allowance import allow_for_penalty


def find_allowance(
    update: CapturedUpdate,
    model: nn.Module,
    labels: Int[Tensor, " batch"] | None,
    anchor: Anchor | None,
    adaptive: bool,
    look: OneLook | None = None,
) -> Adaptation:
    """All that is allowed for in the match with the update.

    Args:
        update: What is attacked.
        model: The server's model, which the update fits.
        labels: The batch's; None where they are optimised with the images.
        anchor: From peeling, or None.
        adaptive: Whether defences are allowed for.
        look: At the final layer, where others ask it too.
    """
    found = allow_for_penalty(update, model)
    if anchor is not None and anchor.scales:
        # Peeling found the factors of clipping exactly, and its cotangent holds them.
        return found.and_also(Adaptation(image_weights=torch.tensor(anchor.scales)))
    if update.facts.loss_scale.value is None:
        found = found.and_also(Adaptation(free_scale=True))
    if not adaptive:
        return found
    # Deltas of several steps give no such evidence, and without labels there is nothing to hold it against.
    if update.local is not None or labels is None:
        # What the client says needs no evidence: after clipping only the direction counts.
        clips = any(one.name in ("clip", "dp_sgd") for one in update.defences)
        return found.and_also(Adaptation(free_scale=True)) if clips else found
    return found.and_also(allow_for_defence(update, model, labels, look))

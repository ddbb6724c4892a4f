"""What the match allows for: penalty, scale and defence, as far as the update shows or the client states them."""

from __future__ import annotations

import torch

from ..target import Target
from ..target.adaptation import Adaptation
from ..target.defence_evidence import allow_for_defence
from .objective_config import ObjectiveConfig
from .penalty_evidence import allow_for_penalty


def allowance(target: Target, config: ObjectiveConfig) -> Adaptation:
    """All that is allowed for in the match with a target.

    Args:
        target: The update must fit its model.
        config: Whether defences are allowed for, and whether the gradient counts at all.
    """
    update, found = target.update, allow_for_penalty(target.update, target.model)
    if target.anchor is not None and target.anchor.scales:
        # Peeling found the factors of clipping exactly, and its cotangent holds them.
        return found.and_also(Adaptation(image_weights=torch.tensor(target.anchor.scales)))
    if update.facts.loss_scale.value is None:
        found = found.and_also(Adaptation(free_scale=True))
    # Deltas of several steps give no such evidence, and without labels there is nothing to hold it against.
    blind = update.local is not None or target.joint_labels
    if not config.adaptive or config.gradient_weight == 0:
        return found
    if blind:
        # What the client says needs no evidence: after clipping only the direction counts.
        clips = any(one.name in ("clip", "dp_sgd") for one in update.defences)
        return found.and_also(Adaptation(free_scale=True)) if clips else found
    return found.and_also(allow_for_defence(update, target.model, target.labels))

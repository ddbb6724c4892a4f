"""The private images as an anchor, where taps and what follows from them determine them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..capture import BatchNormMode, CapturedUpdate, RecoveredLabels
from ..peeling import Anchor
from ..peeling.config import PeelingConfig
from ..peeling.recovery import Recovery, recover_images


@dataclass(frozen=True)
class TapImages:
    """What came of it."""

    anchor: Anchor | None
    """The images, in the order of the labels, at the first module's input."""
    labels: RecoveredLabels
    """Those of the images, where they show them."""
    message: str


def images_by_taps(
    update: CapturedUpdate, model: nn.Module, labels: RecoveredLabels, given: bool, config: PeelingConfig
) -> TapImages | None:
    """The images, where the gradient determines them; None where that is not tried.

    Args:
        update: What is attacked.
        model: The server's model.
        labels: As they are known so far.
        given: Whether the user states them.
        config: Of peeling.
    """
    wanted = config.enabled and config.taps and config.operations > 0
    if not wanted or update.local is not None or update.batch_norm is not BatchNormMode.EVAL:
        return None
    found = recover_images(update, model, config)
    if found.images is None or found.error is None or not found.steps:
        return TapImages(None, labels, found.message) if found.steps else None
    worst = float(found.error.max())
    if found.module is None or not worst <= config.tolerance:
        return TapImages(None, labels, found.message)
    known, order = _ordered(found, labels, given)
    if order is None:
        message = f"{found.message} Whose label is whose is not known, so that they are left out."
        return TapImages(None, labels, message)
    images = found.images[order]
    anchor = Anchor(
        module=found.module,
        activations=images,
        cotangent=torch.zeros_like(images),
        one_sided=False,
        explained=tuple(update.gradients),
        error=worst,
    )
    return TapImages(anchor, known, found.message)


def _ordered(found: Recovery, labels: RecoveredLabels, given: bool) -> tuple[RecoveredLabels, torch.Tensor | None]:
    """The labels, and the order in which the images have them."""
    if found.labels is None:
        # With one label for all images any order is right.
        alike = len(set(labels.labels.tolist())) == 1
        return labels, torch.arange(len(labels.labels)) if alike else None
    told = labels.labels.cpu()
    if sorted(told.tolist()) == sorted(found.labels.tolist()):
        order = torch.empty(len(told), dtype=torch.long)
        order[told.argsort(stable=True)] = found.labels.argsort(stable=True)
        return labels, order
    if given:
        return labels, None
    order = found.labels.argsort(stable=True)
    seen = RecoveredLabels(
        labels=found.labels[order],
        confidence=torch.ones(len(order)),
        method="features",
        assumption="Each image's features are known, and with them the final layer's gradient gives its label.",
        warnings=(),
    )
    return seen, order

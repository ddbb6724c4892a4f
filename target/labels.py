"""Labels that no rule recovers: those that the user states, and those that are optimised with the images."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..capture import BatchNormMode, CapturedUpdate, LabelError, RecoveredLabels, client_mode
from ..capture.labels.recovery import METHODS
from .request import Request
from .second_derivative import client_batch

AUTO = "auto"
"""Whichever rule answers."""
JOINT = "joint"
"""Labels are optimised with the images."""
LABEL_RULES = (*METHODS, JOINT)
"""What a user may write in place of labels."""
_UNREAD = "unread"


def joint_labels(probabilities: Float[Tensor, "batch classes"]) -> RecoveredLabels:
    """The likeliest class of each image, where labels were optimised with the images."""
    confidence, labels = probabilities.max(1)
    return RecoveredLabels(
        labels=labels,
        confidence=confidence,
        method=JOINT,
        assumption="Labels were optimised together with the images, so that each of them holds for its image only.",
        warnings=(),
    )


def unread_labels(count: int) -> RecoveredLabels:
    """In the place of labels where the final layer's gradient was not sent: all of class 0, none of them believed."""
    return RecoveredLabels(
        labels=torch.zeros(count, dtype=torch.long),
        confidence=torch.zeros(count),
        method=_UNREAD,
        assumption="Nothing is known of the labels: the update lacks the gradient of the final layer.",
    )


def are_unread(labels: RecoveredLabels) -> bool:
    """Whether these are from `unread_labels`."""
    return labels.method == _UNREAD


def given_labels(text: str, update: CapturedUpdate) -> RecoveredLabels | None:
    """Labels that the user states, such as ``0,0,3``; None when the text names a rule.

    They are sorted, except where their order says which image was in which local step.
    """
    words = text.split(",")
    if not all(word.strip().isdigit() for word in words):
        return None
    values = [int(word) for word in words]
    if update.local is None or len(update.local.batches(update.image_count)) == 1 or update.local.shuffled:
        values.sort()
    if len(values) != update.image_count:
        raise LabelError(f"labels={text}: {len(values)} labels were given for {update.image_count} images.")
    return RecoveredLabels(
        labels=torch.tensor(values),
        confidence=torch.ones(len(values)),
        method="given",
        assumption="The server knows the labels.",
        warnings=(),
    )


def labels_left_out(request: Request, told: CapturedUpdate, update: CapturedUpdate) -> tuple[Request, str]:
    """What is asked for without labels that the user states for as many images as were told, where the update shows
    that they are more; and why, in a sentence. Empty where they stay.

    Args:
        request: What the attack asks for.
        told: The update with the facts as they were told.
        update: With those that are believed.
    """
    given = request.labels.count(",") + 1
    rule = not all(word.strip().isdigit() for word in request.labels.split(","))
    if rule or given == update.image_count or given != told.image_count:
        return request, ""
    why = f"The labels that were given are those of {given} images, and the update is of {update.image_count}"
    return replace(request, labels="auto"), f"{why}: they are left out, and labels are recovered."


def require_classes(labels: RecoveredLabels, update: CapturedUpdate, model: nn.Module) -> None:
    like = next(model.parameters())
    with torch.no_grad(), client_mode(model, BatchNormMode.EVAL):
        classes = model(like.new_zeros(client_batch(update), *update.image_shape)).shape[-1]
    largest = int(labels.labels.max())
    if largest >= classes:
        raise LabelError(f"labels names class {largest}, but the model's classes are 0 to {classes - 1}.")

"""The private images of a client that trained, as an anchor, where its weight delta determines them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..capture import BatchNormMode, CapturedUpdate, RecoveredLabels
from ..peeling import Anchor
from ..peeling.config import PeelingConfig
from ..peeling.layers import sizes
from ..peeling.progress import Tell, unheard
from ..peeling.record import Contrast
from ..peeling.refusals import Why
from ..peeling.visit_recovery import VisitRecovery, recover_visits
from .start import Start
from .step_rates import check_rates
from .tap_images import AGREES, TapImages, ordered

_STATISTICS = (
    "The visits of several clients' local steps are not taken apart by taps: batch norm ran on each batch's own "
    "statistics, which peeling undoes for one client alone."
)
_UNSEEN = (
    "The learning rate of each step does not show, so that it may be another than the facts say or have changed on the "
    "way."
)
# What is taken for the error of an image whose features were not met, as a share of its root mean square.
_UNMET = 0.3


def images_by_visits(
    update: CapturedUpdate,
    model: nn.Module,
    labels: RecoveredLabels,
    given: bool,
    config: PeelingConfig,
    seed: int = 0,
    tell: Tell = unheard,
) -> TapImages | None:
    """The images, where the weight delta of several steps determines them, or what it says of their features; None
    where that is not tried.

    Args:
        update: What is attacked.
        model: The server's model.
        labels: As they are known so far.
        given: Whether the user states them, in the order of the client's steps.
        config: Of peeling.
        seed: That begins at the images themselves, where these are not sure.
        tell: Told what it is at.
    """
    wanted = config.enabled and config.taps and config.operations > 0
    local = update.local
    if not wanted or local is None or local.learning_rate is None:
        return None
    if update.batch_norm is not BatchNormMode.EVAL and update.facts.clients.value > 1:
        return TapImages(labels, _STATISTICS)
    try:
        found = recover_visits(update, model, config, tell=tell)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return TapImages(labels, "Peeling by taps is left out: the equations of one of the layers are singular.")
    made = _made(found, update, labels, given, config.tolerance, seed)
    return replace(made, finding=check_rates(update, found.sizes, known=made.anchor is not None))


def _made(
    found: VisitRecovery, update: CapturedUpdate, labels: RecoveredLabels, given: bool, tolerance: float, seed: int
) -> TapImages:
    """What was found in the order of the labels, as an anchor where nothing speaks against the images."""
    if found.images is None or found.error is None:
        decays = update.local is not None and update.local.weight_decay > 0
        said = found.steps or found.record is None or found.record.loose is not None or _contradicts(found) or decays
        message = " ".join(filter(None, (found.message, _silent(found, update)))) if said else ""
        return TapImages(labels, message, record=found.record)
    why = _unsure(found, update, tolerance)
    order = _order(found, labels, given)
    if why is not None or order is None:
        message = " ".join(filter(None, (found.message, why, _silent(found, update))))
        return TapImages(labels, message, start=_start(found, update, order, seed), record=found.record)
    assert found.module is not None
    known = labels if given else _shown(found, update, order)
    images = found.images[order]
    anchor = Anchor(
        module=found.module,
        activations=images,
        cotangent=torch.zeros_like(images),
        one_sided=False,
        explained=tuple(update.gradients),
        error=float(found.error.max()),
    )
    return TapImages(known, found.message, anchor, record=found.confirmed_record)


def _contradicts(found: VisitRecovery) -> bool:
    """Whether visits show and are not those of the steps that the facts make."""
    refused = () if found.derivation is None else found.derivation.refused
    return any(one.why in (Why.STEPS, Why.VISITS) for one in refused)


def _silent(found: VisitRecovery, update: CapturedUpdate) -> str | None:
    """That the steps may be others than the facts make, where they would not show it; None where they would."""
    local = update.local
    if local is not None and local.weight_decay and not found.steps:
        return (
            "With weight decay that may be since it, the learning rate, the momentum or the number of steps is another "
            "than the facts say: what the weights decayed by is taken off the delta first, and the rest of it hides "
            "the visits."
        )
    if not found.steps or local is None or (found.sizes is not None and not found.sizes.vague):
        return None
    if not (local.momentum or local.weight_decay):
        return None if update.batch_norm is BatchNormMode.EVAL else _UNSEEN
    decay = ", the weight decay" if local.weight_decay else ""
    return (
        f"The learning rate of each step does not show: that may be since the learning rate{decay} or the momentum is "
        "another than the facts say."
    )


def _unsure(found: VisitRecovery, update: CapturedUpdate, tolerance: float) -> str | None:
    """Why the images are not taken for known, in a sentence; None where they are."""
    assert found.images is not None
    assert found.error is not None
    if len(found.images) != update.image_count:
        return (
            f"They are not taken for known: the visits show {len(found.images)} images so far, and the client has "
            f"{update.image_count}."
        )
    if found.module is None:
        return "No module of the model is given the images as they are, so that they are not taken for known."
    if found.record is not None and found.record.contrast is Contrast.HIDDEN:
        return "They are not taken for known: their contrast is not."
    if found.labels is None:
        return "They are not taken for known: the visits do not show whose label is whose."
    if not float(found.error.max()) <= tolerance:
        return "They are not taken for known, since the features of some of them were not met."
    if not found.disagreement <= AGREES:
        return (
            "They are not taken for known, since others could have the same features: the layers in front of these "
            f"would have moved otherwise than the client's ({found.disagreement:.1g} of the delta is left)."
        )
    return None


def _order(found: VisitRecovery, labels: RecoveredLabels, given: bool) -> Tensor | None:
    """The images in the order of the labels that were given, or in that of the client's steps."""
    if found.labels is None or found.images is None:
        return None
    if not given:
        return torch.arange(len(found.images))
    return ordered(found.labels, labels.labels.cpu())


def _shown(found: VisitRecovery, update: CapturedUpdate, order: Tensor) -> RecoveredLabels:
    assert found.labels is not None
    at_logits = "The derivative by the logits of every visit is known, and it is negative at the label alone."
    at_cut = "With the images of each step these labels make the derivative that is known in the middle of the network."
    return RecoveredLabels(
        labels=found.labels[order],
        confidence=torch.ones(len(order)),
        method="features",
        assumption=at_logits if update.batch_norm is BatchNormMode.EVAL else at_cut,
        warnings=(),
    )


def _start(found: VisitRecovery, update: CapturedUpdate, order: Tensor | None, seed: int) -> Start | None:
    """Where seeds begin when the images are not sure."""
    assert found.images is not None
    assert found.error is not None
    if len(found.images) != update.image_count or order is None:
        return None
    size = sizes(found.images)
    off = torch.tensor([one if math.isfinite(one) else _UNMET for one in found.error.tolist()])
    return Start(found.images[order].float(), (off * size)[order].float(), seed)

"""The private images as an anchor, where taps and what follows from them determine them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..capture import BatchNormMode, CapturedUpdate, RecoveredLabels, as_gradient, client_mode
from ..capture.forward import gradient
from ..peeling import Anchor, KnownFeatures
from ..peeling.config import PeelingConfig
from ..peeling.factors import distinct_from_one
from ..peeling.layers import relative, worst
from ..peeling.record import PeelingRecord
from ..peeling.recovery import Recovery, recover_images

# The largest share by which a weight's gradient at images that were found may be off from the one that was sent. Units
# near zero change sides with the least error of an image; images that are others are off by most of the gradient.
_AGREES = 0.05


@dataclass(frozen=True)
class TapImages:
    """What came of it."""

    anchor: Anchor | None
    """The images, in the order of the labels, at the first module's input."""
    labels: RecoveredLabels
    """Those of the images, where they show them."""
    message: str
    """Empty where there is nothing to say."""
    record: PeelingRecord | None = None
    """What was recovered, and where it ended."""
    known: KnownFeatures | None = None
    """Features of every image."""


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
    try:
        found = recover_images(update, model, config)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return TapImages(None, labels, "Peeling by taps is left out: the equations of one of the layers are singular.")
    images = _anchored(found, update, model, labels, given, config)
    record = found.record
    if record is not None and record.found is not None:
        record = replace(record, found=replace(record.found, confirmed=images.anchor is not None))
    return replace(images, record=record, known=found.known)


def _anchored(
    found: Recovery,
    update: CapturedUpdate,
    model: nn.Module,
    labels: RecoveredLabels,
    given: bool,
    config: PeelingConfig,
) -> TapImages:
    """The images that were found as an anchor, where nothing speaks against them."""
    known, order, said = _ordered(found, labels, given)
    message = " ".join(part for part in (found.message, said) if part)
    if found.images is None or found.error is None or not found.steps:
        # That a network simply has no foothold, as most small ones, is said in the record alone.
        return TapImages(None, known, message if found.steps or found.blocked or found.record is None else "")
    worst = float(found.error.max())
    if not worst <= config.tolerance:
        return TapImages(None, known, message)
    if found.module is None:
        message = f"{message} No module of the model is given the images as they are, so that they are left out."
        return TapImages(None, known, message)
    if order is None:
        message = f"{message} Whose label is whose is not known, so that they are left out."
        return TapImages(None, known, message)
    images = found.images[order]
    derivative = None if found.final is None else found.final.derivative[order]
    off = _disagreement(update, model, found.module, images, known.labels, derivative)
    if off is None or not off <= _AGREES:
        why = "is not in the update" if off is None else f"is off by {off:.1g} from the one that was sent"
        message = (
            f"{message} They are left out, since others could have the same features: the first layer's "
            f"gradient, which would tell these from others, {why}."
        )
        return TapImages(None, known, message)
    scales = () if found.final is None else distinct_from_one(found.final.scales[order].tolist(), worst)
    anchor = Anchor(
        module=found.module,
        activations=images,
        cotangent=torch.zeros_like(images),
        one_sided=False,
        explained=tuple(update.gradients),
        error=worst,
        scales=scales,
    )
    return TapImages(anchor, known, message)


def _disagreement(
    update: CapturedUpdate,
    model: nn.Module,
    first: str,
    images: Tensor,
    labels: Tensor,
    derivative: Tensor | None,
) -> float | None:
    """How far the gradient of these images is from the one that was sent, in the weight where it is farthest; None
    where that of the first layer was not sent.

    A descent on features has used no gradient of the layers in front of them: images that have the features and are
    others give others. Where the derivative by the logits is known as it was sent, neither the loss nor what it was
    multiplied by has to be.
    """
    sent = as_gradient(update, model).gradients
    if f"{first}.weight" not in sent or not bool(sent[f"{first}.weight"].any()):
        return None
    weights = {name: one for name, one in model.named_parameters() if one.dim() > 1 and name in sent}
    like = next(model.parameters())
    with torch.enable_grad(), client_mode(model, update.batch_norm):
        logits = model(images.to(like))
        if derivative is None:
            smoothing = float(update.facts.label_smoothing.value)
            loss = F.cross_entropy(logits, labels.to(like.device), label_smoothing=smoothing)
            made = gradient(loss, list(weights.values()))
        else:
            made = gradient(logits, list(weights.values()), derivative.to(like))
    off = [
        relative(one.cpu().double() - sent[name].cpu().double(), sent[name].cpu().double())
        for name, one in zip(weights, made, strict=True)
        if bool(sent[name].any())
    ]
    return worst(*off)


def _ordered(found: Recovery, labels: RecoveredLabels, given: bool) -> tuple[RecoveredLabels, torch.Tensor | None, str]:
    """The labels, the order in which the images have them, and what is to be said of those that were given."""
    if found.labels is None:
        # With one label for all images any order is right.
        alike = len(set(labels.labels.tolist())) == 1
        return labels, torch.arange(len(labels.labels)) if alike else None, ""
    told = labels.labels.cpu()
    if sorted(told.tolist()) == sorted(found.labels.tolist()):
        order = torch.empty(len(told), dtype=torch.long)
        order[told.argsort(stable=True)] = found.labels.argsort(stable=True)
        return labels, order, ""
    order = found.labels.argsort(stable=True)
    seen = RecoveredLabels(
        labels=found.labels[order],
        confidence=torch.ones(len(order)),
        method="features",
        assumption="Each image's features are known, and with them the final layer's gradient gives its label.",
        warnings=(),
    )
    return seen, order, _contradicted(found.labels, told) if given else ""


def _contradicted(shown: Tensor, told: Tensor) -> str:
    """One sentence on labels that were given and that the images do not have."""
    ours, theirs = Counter(shown.tolist()), Counter(told.tolist())

    def classes(some: Counter[int]) -> str:
        words = [f"{label} ({count} times)" if count > 1 else str(label) for label, count in sorted(some.items())]
        return f"{'class' if some.total() == 1 else 'classes'} {', '.join(words)}"

    return (
        f"The labels that were given are not those of the images: the update shows {classes(ours - theirs)} where "
        f"{classes(theirs - ours)} {'was' if (theirs - ours).total() == 1 else 'were'} given; what it shows is used."
    )

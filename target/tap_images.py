"""The private images as an anchor, where taps and what follows from them determine them; else their features."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..capture import CapturedUpdate, RecoveredLabels, as_gradient, client_mode, read
from ..capture.forward import gradient
from ..peeling import Anchor, KnownFeatures
from ..peeling.config import PeelingConfig
from ..peeling.cut import Cut
from ..peeling.factors import distinct_from_one
from ..peeling.fewer_images import with_copies
from ..peeling.layers import relative, worst
from ..peeling.progress import Tell, unheard
from ..peeling.record import Contrast, PeelingRecord
from ..peeling.recovered import Recovery
from ..peeling.recovery import recover_images
from ..peeling.wording import repeated
from .finding import Finding
from .image_count import at_least
from .labels import are_unread
from .shared_statistics import peeled_statistics, steps_doubted
from .start import Start

_BY_FINAL = "Each image's features are known, and with them the final layer's gradient gives its label."
_BY_INPUT = (
    "Each image's features are known, and the derivative of its loss by them, which is that of one label alone; the "
    "final layer's gradient is not in the update."
)
AGREES = 0.05
"""The largest share by which a weight's gradient at images that were found may be off from the one that was sent. Units
near zero change sides with the least error of an image; images that are others are off by most of the gradient."""


@dataclass(frozen=True)
class TapImages:
    """What came of it, in the order of the labels."""

    labels: RecoveredLabels
    """Those of the images, where they show them."""
    message: str
    """Empty where there is nothing to say."""
    anchor: Anchor | None = None
    """The images, at the first module's input."""
    cut: Cut | None = None
    """Where the images do not follow: features of every image."""
    start: Start | None = None
    """Images that look like these features."""
    record: PeelingRecord | None = None
    """What was recovered, and where it ended."""
    known: KnownFeatures | None = None
    """Features of every image."""
    scales_fitted: bool = False
    """Whether the final layer tells by what each image counts."""
    finding: Finding = field(default_factory=Finding)
    """What it shows of the facts."""


def images_by_taps(
    update: CapturedUpdate,
    model: nn.Module,
    labels: RecoveredLabels,
    given: bool,
    config: PeelingConfig,
    seed: int = 0,
    tell: Tell = unheard,
) -> TapImages | None:
    """The images, where the gradient determines them, or else what it says of their features; None where that is not
    tried.

    Args:
        update: What is attacked.
        model: The server's model.
        labels: As they are known so far.
        given: Whether the user states them.
        config: Of peeling.
        seed: That begins at the decoded start itself.
        tell: Told what it is at.
    """
    wanted = config.enabled and config.taps and config.operations > 0
    if not wanted or update.local is not None:
        return None
    try:
        found = recover_images(update, model, config, tell=tell)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return TapImages(labels, "Peeling by taps is left out: the equations of one of the layers are singular.")
    if found.shown is not None:
        return TapImages(labels, "", finding=_more(found.shown, update.image_count))
    known, found = found.known, with_copies(found)
    made = _made(found, update, model, labels, given, config.tolerance, seed)
    record = found.record
    if record is not None and record.found is not None:
        record = replace(record, found=replace(record.found, confirmed=made.anchor is not None))
    if record is not None and made.start is not None:
        record = replace(record, decoded=True)
    finding = peeled_statistics(found.statistics_off, doubted=steps_doubted(update, model))
    return replace(made, record=record, known=known, finding=finding)


def _more(shown: int, stated: int) -> Finding:
    """More images than the facts state: that many are attacked."""
    why = f"The taps of the network's convolutions are those of {shown} images, and the facts state {stated}"
    facts = {"image_count": read(shown, "the rank of the convolutions' gradients")}
    said, limits = (f"{why}; {shown} are attacked.",), (at_least(shown),)
    return Finding(facts, messages=said, limits=limits, resolved=frozenset({"image_count"}))


def _made(
    found: Recovery,
    update: CapturedUpdate,
    model: nn.Module,
    labels: RecoveredLabels,
    given: bool,
    tolerance: float,
    seed: int,
) -> TapImages:
    """What was found in the order of the labels, as an anchor where nothing speaks against the images."""
    known, order, said = _ordered(found, labels, given)
    repeats = "" if found.record is None else repeated(found.record)
    message = " ".join(part for part in (found.message, repeats, said) if part)
    if not found.steps or (found.images is None and found.cut is None):
        # That a network simply has no foothold, as most small ones, is said in the record alone.
        return TapImages(known, message if found.steps or found.blocked or found.record is None else "")
    if order is None and are_unread(labels):
        # Labels are looked for with the images, whatever their order.
        start = _start(found, torch.arange(len(labels.labels)), seed, _all_met(found, tolerance))
        return TapImages(known, f"{message} Labels do not follow from these.", start=start)
    if order is None:
        return TapImages(known, f"{message} Whose label is whose is not known, so that they are left out.")
    refused = _refused(update, model, found, known.labels, order, tolerance)
    if refused is not None:
        # No gradient in front of the features tells these from others: from there a seed may only lead away.
        stands = _all_met(found, tolerance) and not _front_is_sent(update, model, found.module)
        return _behind(found, known, order, " ".join((message, refused)).strip(), seed, stands)
    assert found.images is not None
    assert found.error is not None
    assert found.module is not None
    images, worst = found.images[order], _worst(found)
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
    return TapImages(known, message, anchor, scales_fitted=found.final is not None)


def _behind(
    found: Recovery, labels: RecoveredLabels, order: Tensor, message: str, seed: int, stands: bool
) -> TapImages:
    """What seeds have to go by where the images are not known; see `_start` for whether these stand for the answer."""
    if found.cut is None:
        return TapImages(labels, message)
    cut = found.cut.in_order(order)
    message += " Seeds descend on these features"
    start = _start(found, order, seed, stands)
    if start is None:
        return TapImages(labels, f"{message}, from noise.", cut=cut)
    where = "from images that a decoder fitted on public photos makes of them"
    if found.images is not None:
        where = "from the images that were found"
    guess = "what the features leave open of an image is a guess of these and of the priors"
    return TapImages(labels, f"{message}, {where}; {guess}.", cut=cut, start=start)


def _start(found: Recovery, order: Tensor, seed: int, stands: bool) -> Start | None:
    """The images that were found, else those of the decoder; these stand for the answer too where they fit more than
    the features, or where those that were found do."""
    if found.start is not None:
        images = found.start.images if found.images is None else found.images
        error = torch.full((len(order),), found.start.error)
        return Start(images[order].float(), error, seed, found.start.fitted or stands)
    if not stands:
        return None
    assert found.images is not None
    assert found.error is not None
    return Start(found.images[order].float(), found.error[order].float(), seed, fitted=True)


def _met(found: Recovery, tolerance: float) -> bool:
    """Whether images were found that have all that is known of them, and rest on nothing that is known roughly."""
    if found.images is None or found.error is None or found.is_rough or not _worst(found) <= tolerance:
        return False
    return found.record is None or found.record.contrast is not Contrast.HIDDEN


def _all_met(found: Recovery, tolerance: float) -> bool:
    """Whether that is so of every image of the batch."""
    return _met(found, tolerance) and (found.repeats is None or not found.repeats.unseen)


def _front_is_sent(update: CapturedUpdate, model: nn.Module, first: str | None) -> bool:
    """Whether the gradient was sent of the module that is given the images."""
    if first is None:
        return False
    sent = as_gradient(update, model).gradients.get(f"{first}.weight")
    return sent is not None and bool(sent.any())


def _refused(
    update: CapturedUpdate, model: nn.Module, found: Recovery, labels: Tensor, order: Tensor, tolerance: float
) -> str | None:
    """Why the images are not taken for known, in a sentence; None where they are."""
    if not _met(found, tolerance):
        return ""
    assert found.images is not None
    if found.module is None:
        return "No module of the model is given the images as they are, so that they are not taken for known."
    derivative = None if found.final is None else found.final.derivative[order]
    off = _disagreement(update, model, found.module, found.images[order], labels, derivative)
    if off is not None and off <= AGREES:
        return None
    why = "is not in the update (frozen, or left out)"
    if off is not None:
        why = f"is off by {off:.1g} from the one that was sent"
    return (
        "They are not taken for known, since others could have the same features: the first layer's gradient, which "
        f"would tell these from others, {why}."
    )


def _worst(found: Recovery) -> float:
    """The error of the image that is known least, of those that were found: what stands for the others is last."""
    assert found.error is not None
    unseen = 0 if found.repeats is None else found.repeats.unseen
    return float(found.error[: len(found.error) - unseen].max())


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
    if not _front_is_sent(update, model, first):
        return None
    sent = as_gradient(update, model).gradients
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
        alike = len(set(labels.labels.tolist())) == 1 and not are_unread(labels)
        return labels, torch.arange(len(labels.labels)) if alike else None, ""
    told = labels.labels.cpu()
    same, unread = ordered(found.labels, told), are_unread(labels)
    if same is not None and not unread:
        return labels, same, ""
    order = found.labels.argsort(stable=True)
    unseen = 0 if found.repeats is None else found.repeats.unseen
    seen = RecoveredLabels(
        labels=found.labels[order],
        confidence=(order < len(order) - unseen).float(),
        method="features",
        assumption=_BY_INPUT if found.final is not None and found.final.by_input else _BY_FINAL,
        warnings=(),
    )
    return seen, order, _contradicted(found.labels, told) if given else ""


def ordered(found: Tensor, told: Tensor) -> Tensor | None:
    """For each label that is told the place of one that was found; None where they are not the same labels."""
    if sorted(told.tolist()) != sorted(found.tolist()):
        return None
    order = torch.empty(len(told), dtype=torch.long)
    order[told.argsort(stable=True)] = found.argsort(stable=True)
    return order


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

"""Layer peeling with the images that the final layer shows, where they are fewer than the facts state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..capture import CapturedUpdate, OneLook, RecoveredLabels, as_gradient, read
from ..peeling import Anchor, PeelingConfig, peel
from ..peeling.anchor import Peeling
from ..peeling.repeats import Repeats
from ..peeling.wording import repeated
from .final_layer import softmax_layer
from .image_count import shown_images

# How far the factors by which images count may be from whole numbers, at least, and in estimated errors.
_WHOLE, _ERRORS = 0.02, 3.0


@dataclass(frozen=True)
class PeeledCopies:
    """What came of it, of the batch that the facts state: images that repeat stand there as often as they do."""

    labels: RecoveredLabels
    peeling: Peeling


def peel_shown(
    update: CapturedUpdate,
    model: nn.Module,
    labels: RecoveredLabels,
    given: bool,
    config: PeelingConfig,
    look: OneLook,
) -> PeeledCopies | None:
    """The layers peeled with as many images as the final layer's gradient shows; each counts as often as it is there.

    The final layer tells its images apart by the units that are shut, whatever their number, and with them by what each
    counts beside what it would in the mean. Where these factors are whole numbers of a B-th, and account for B images,
    they are the numbers of copies.

    Args:
        update: A gradient, of B images by the facts.
        model: The server's model.
        labels: As they are known so far.
        given: Whether the user states them.
        config: Of peeling.
        look: At the final layer.

    Returns:
        None where it shows as many as the facts state, they are not told apart, or no whole numbers account for all.
    """
    if not config.enabled or update.local is not None:
        return None
    layer = softmax_layer(as_gradient(update, model), model, look)
    shown = None if layer is None or not layer.clean else shown_images(layer)
    if layer is None or shown is None or shown >= update.image_count:
        return None
    fewer = update.stating(image_count=read(shown, "the rank of the final layer's gradient"))
    apart = look.unmix(layer.sent, shown, layer.smoothing)
    if apart is None:
        return None
    own = apart.labels.sort().values
    peeling = peel(fewer, model, own, config, scaled=True, look=look)
    anchor = peeling.anchor
    if anchor is None or peeling.record is None:
        return None
    repeats = _repeats(anchor.scales or (1.0,) * shown, own.tolist(), update.image_count, anchor.error)
    if repeats is None or (given and not _alike(repeats, labels)):
        return None
    # Once more: what is known to be whole numbers is not fitted.
    peeling = peel(fewer, model, own, config, scaled=True, look=look, copies=torch.tensor(repeats.times))
    if peeling.anchor is None or peeling.record is None:
        return None
    record = replace(peeling.record, repeats=repeats)
    copies = Peeling(_copied(peeling.anchor, repeats), f"{peeling.message} {repeated(record)}", record)
    return PeeledCopies(labels if _alike(repeats, labels) else _labels(repeats), copies)


def _repeats(scales: Sequence[float], labels: Sequence[int], stated: int, error: float) -> Repeats | None:
    """How often each image is there; None where the factors are no such numbers."""
    times = [scale * stated / len(scales) for scale in scales]
    whole = [round(one) for one in times]
    off = max(abs(one - count) for one, count in zip(times, whole, strict=True))
    if min(whole) < 1 or sum(whole) != stated or off > max(_WHOLE, _ERRORS * error * max(whole)):
        return None
    own = tuple((one,) * count for one, count in zip(labels, whole, strict=True))
    # What a large error alone allows is not certain.
    return Repeats(stated, tuple(whole), own, sure=off <= _WHOLE)


def _alike(repeats: Repeats, labels: RecoveredLabels) -> bool:
    found = repeats.all_labels
    return found is not None and sorted(found.tolist()) == labels.labels.tolist()


def _labels(repeats: Repeats) -> RecoveredLabels:
    found = repeats.all_labels
    assert found is not None
    return RecoveredLabels(
        labels=found,
        confidence=torch.ones(len(found)),
        method="unmixing",
        assumption="The final layer reads the output of a ReLU, and images of one label that cannot be told apart are "
        "one image that is there more than once.",
        warnings=(),
    )


def _copied(anchor: Anchor, repeats: Repeats) -> Anchor:
    """Of every copy, which has its share of the derivative."""
    which, times = repeats.which.to(anchor.activations.device), torch.tensor(repeats.times)
    shares = times.to(anchor.cotangent)[which].reshape(-1, *[1] * (anchor.cotangent.dim() - 1))
    return replace(anchor, activations=anchor.activations[which], cotangent=anchor.cotangent[which] / shares, scales=())

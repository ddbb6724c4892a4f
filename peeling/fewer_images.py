"""A gradient of fewer images than the facts state: what is derived is of those that it shows, and each stands for all
its copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..capture import CapturedUpdate
from .config import PeelingConfig
from .graph import Graph
from .images_shown import images_shown
from .recovered import Recovery
from .repeats import Repeats, find_repeats, once_each
from .rules import Derivation, Step, derive
from .rules.image_labels import CLEAR, ImageLabels
from .rules.knowledge import Knowledge

# Relative error, and how many times that of the usual image, from which an image is much less well known.
_FAINT, _FAINTER = 1e-3, 100.0


def derive_from(
    graph: Graph,
    update: CapturedUpdate,
    image_count: int,
    config: PeelingConfig,
    told: Callable[[Step, Knowledge], None],
) -> Derivation:
    """What follows from a gradient, of so many images.

    Args:
        graph: The network.
        update: A gradient.
        image_count: Of which it is.
        config: Tolerance and effort.
        told: After each thing that was recovered.
    """
    tolerance, operations, rate = config.tolerance, config.operations, update.step_rate
    return derive(graph, update.gradients, image_count, tolerance, told, operations, step_rate=rate)


def derive_shown(
    graph: Graph, update: CapturedUpdate, config: PeelingConfig, told: Callable[[Step, Knowledge], None]
) -> tuple[Derivation, int]:
    """What follows from the gradient, and of how many images: of fewer or more than stated where that many leave no
    foothold and the ranks of convolutions show another number.

    More images than the facts state are counted and nothing of them derived: they are other facts. Each of the two
    attempts may cost `PeelingConfig.operations`.

    Args:
        graph: The network.
        update: A gradient.
        config: Tolerance and effort.
        told: After each thing that was recovered.
    """

    def of(count: int) -> Derivation:
        return derive_from(graph, update, count, config, told)

    found, stated = of(update.image_count), update.image_count
    shown = None if found.steps else images_shown(graph, update.gradients, stated)
    if shown is None or shown == stated:
        return found, stated
    if shown > stated:
        return found, shown
    other = of(shown)
    return (other, shown) if other.steps else (found, stated)


def faint_images(derivation: Derivation) -> list[int]:
    """Images that are known far less well than the others at what was recovered first, and so little that what follows
    from all of them together may be refused for their sake; empty where there are none.

    The derivative of an image that the network is sure of is small, and its noise relative to that large. Left out, it
    adds to what the others leave of the gradient as little.
    """
    if not derivation.steps:
        return []
    errors = torch.tensor(derivation.steps[0].error)
    found = (errors >= max(_FAINT, _FAINTER * float(errors.median()))).nonzero().flatten().tolist()
    return [int(one) for one in found] if len(found) < len(errors) else []


def repeats_of(final: ImageLabels | None, derivation: Derivation, update: CapturedUpdate, apart: int = 0) -> Repeats:
    """How often each image that is shown is in the batch.

    Args:
        final: What the final layer says of each.
        derivation: With the logits.
        update: With the number that the facts state.
        apart: Images of the batch that are known to be others than these.
    """
    known, graph = derivation.knowledge, derivation.graph
    logits = known.complete(graph.output)
    smoothing = float(update.facts.label_smoothing.value)
    found = None
    if final is not None and logits is not None:
        found = find_repeats(
            final.derivative, logits.values, update.image_count, smoothing, float(logits.error.max()), apart
        )
    images = len(known.activations[derivation.steps[0].value].values)
    clear = final is not None and float(final.off.max()) <= CLEAR
    labels = final.labels.tolist() if final is not None and clear else [None] * images
    return found or once_each(labels, update.image_count)


def with_copies(found: Recovery) -> Recovery:
    """What was found, as of the batch that the facts state: images that repeat stand there as often as they do.

    For an image that is none of those that were found, since it has no part in the gradient or a faint one, there is
    what a decoder makes of its features, or one flat colour, and its error is infinite.
    """
    repeats = found.repeats
    if repeats is None:
        return found
    which, unseen = repeats.which, repeats.unseen
    if unseen and found.images is None:
        # Nothing can stand for the features of an image of which nothing is known.
        return replace(found, cut=None, start=None, labels=None, final=None)
    labels = repeats.all_labels
    if labels is not None and unseen:
        labels = torch.cat([labels, labels.new_zeros(unseen)])
    error, start = found.error, found.start
    if start is not None:
        start = replace(start, images=_filled(start.images[which], unseen, found.faint))
    return replace(
        found,
        images=None if found.images is None else _filled(found.images[which], unseen, found.faint),
        error=None if error is None else torch.cat([error[which], error.new_full((unseen,), torch.inf)]),
        labels=labels,
        final=_final(found.final, repeats, labels),
        cut=None if found.cut is None or unseen else found.cut.in_order(which),
        start=start,
    )


def _filled(rows: Tensor, count: int, last: Tensor | None = None) -> Tensor:
    if last is not None and len(last) == count:
        return torch.cat([rows, last.to(rows)])
    return torch.cat([rows, rows.new_zeros(count, *rows.shape[1:])])


def _final(final: ImageLabels | None, repeats: Repeats, labels: Tensor | None) -> ImageLabels | None:
    """Of each copy; what the gradient sums up is shared out among them."""
    if final is None or labels is None:
        return None
    times = torch.tensor(repeats.times, dtype=final.derivative.dtype)
    which = repeats.which
    shared = _filled((final.derivative / times[:, None])[which], repeats.unseen)
    scales = torch.full((len(labels),), repeats.factor, dtype=shared.dtype)
    if not repeats.counted:
        # As they were found they are beside the mean over the images that are shown.
        # What stands for the others has no factor of its own.
        own = final.scales * repeats.stated / len(final.scales)
        scales = _filled(own[which], repeats.unseen, own.median().expand(repeats.unseen))
    return ImageLabels(labels, torch.zeros_like(scales), scales, shared)

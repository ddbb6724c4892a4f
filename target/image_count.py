"""The number of images, as the rank of the final layer's gradient shows it."""

from __future__ import annotations

import torch
from torch import nn

from ..capture import CapturedUpdate, Fact, OneLook, as_gradient, read
from ..capture.labels.final_layer import FinalLayer
from ..peeling.layers import rounding
from ..peeling.repeats import Repeats
from .final_layer import softmax_layer
from .finding import Finding

# Singular values up to so many roundings of the largest one may be rounding, and how far they lie below the others.
_ROUNDINGS, _GAP = 50.0, 30.0


def shown_images(layer: FinalLayer) -> int | None:
    """How many images a clean gradient shows; None where they are no fewer than what can be told apart.

    The weight gradient is ``D^T F``, a row of each image in D and F, so that its rank is at most the number of images,
    and less where images repeat or where the model is so sure of one that rounding covers it. The rows of D sum to
    zero, which leaves ``min(classes - 1, features)`` to be told apart.

    Args:
        layer: The final layer.
    """
    sizes = torch.linalg.svdvals(layer.weight_gradient)
    most = min(layer.weight.shape[0] - 1, layer.weight.shape[1])
    if not float(sizes[0]) > 0:
        return None
    rounded = sizes <= _ROUNDINGS * rounding(layer.sent) * sizes[0]
    count = int((~rounded).sum())
    if count >= most or float(sizes[count - 1]) < _GAP * float(sizes[count]):
        return None
    return count


def check_image_count(update: CapturedUpdate, model: nn.Module, look: OneLook) -> Finding:
    """Whether the final layer's gradient is that of as many images as the facts state.

    Args:
        update: What the client sent.
        model: The server's model.
        look: At the final layer.
    """
    if update.facts.clients.value != 1:
        return Finding()
    local = update.local
    if local is not None and (local.learning_rate is None or local.steps(update.image_count) != 1):
        return Finding()
    layer = softmax_layer(as_gradient(update, model), model, look)
    shown = None if layer is None or not layer.clean else shown_images(layer)
    stated = update.image_count
    if shown is None or shown == stated:
        return Finding()
    if shown < stated:
        # Nothing is called safe then: where images repeat, looking for as many as are stated may find none.
        return Finding(limits=(fewer_shown(shown, stated),))
    told = f"The final layer's gradient is that of {_images(shown)} or more, and the facts state {stated}"
    facts = {"image_count": read(shown, "the rank of the final layer's gradient"), **in_one_batch(update, shown)}
    return Finding(facts, messages=(f"{told}; {shown} are attacked.",), limits=(at_least(shown),))


def in_one_batch(update: CapturedUpdate, count: int) -> dict[str, Fact[int]]:
    """The fact by which a single local step stays one where the client has more images than the facts state.

    Args:
        update: With the facts as they were.
        count: Of the images, as it is read.
    """
    local = update.local
    if local is None or local.batch_size is None or local.steps(update.image_count) != 1 or local.batch_size >= count:
        return {}
    return {"batch_size": read(count, "a gradient of so many images, and that of one local step")}


def at_least(shown: int) -> str:
    """Why an attack on as many images as an update shows may not be one on all."""
    return (
        f"That the update is of {_images(shown)} is a lower bound, which nobody told: images that repeat, or that the "
        "model is very sure of, count for no more, and factors by which images seem to count may be numbers of copies."
    )


def fewer_shown(shown: int, stated: int) -> str:
    """Why finding nothing says little where the final layer shows fewer images than the facts state."""
    return (
        f"The final layer's gradient shows {_images(shown)} where the facts state {stated}: images repeat, the model "
        f"is so sure of some that they show nothing, or there are fewer; the attack looks for {stated}, and where "
        f"images repeat, told.image_count={shown} has it look for each of them once."
    )


def unseen(repeats: Repeats) -> str:
    """What nobody can say of images that the facts state and that are none of those that were found."""
    reason, is_not = ("it has", "is not") if repeats.unseen == 1 else ("they have", "are not")
    why = f"{reason} no part in the gradient that rises above rounding, or so faint a one that the others go before"
    if not repeats.counted or not repeats.sure:
        shown = _images(len(repeats.times))
        why = f"the gradient is that of {shown}, of which some may be there more than once, or {why}"
    return (
        f"Of the {repeats.stated} images that the facts state {repeats.unseen} {is_not} looked for; one flat colour, "
        f"or what a decoder makes of features that are known roughly, stands there: {why}."
    )


def unsure(repeats: Repeats) -> str:
    """Why the numbers of copies may be others."""
    return (
        f"The gradient shows {_images(len(repeats.times))} where the facts state {repeats.stated}, and how often each "
        "is there is not certain: other numbers of copies, and another factor of the loss, make the same gradient."
    )


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"

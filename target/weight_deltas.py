"""Before the attack on a weight delta: its learning rate, and the gradient in its place where it is of one step."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor, nn

from ..capture import (
    CapturedUpdate,
    LocalFacts,
    OneLook,
    Provenance,
    as_gradient,
    as_mean,
    estimate_learning_rate,
    is_one_step,
    read,
)
from ..peeling import find_scale
from ..peeling.wording import listed

_ROUNDS_OF_DECAY = 3


@dataclass(frozen=True)
class Attackable:
    """What is attacked in place of the captured update."""

    update: CapturedUpdate
    """A gradient, or the delta of several steps with a number for the learning rate."""
    scale_known: bool = True
    """False: the learning rate is an estimate."""
    messages: tuple[str, ...] = ()
    rate: float | None = None
    """The learning rate, where it was estimated."""


def as_attackable(update: CapturedUpdate, model: nn.Module, look: OneLook | None = None) -> Attackable:
    """The update with an estimate where the learning rate is not known, as a gradient where it is of one step, and as a
    mean over the images that came.

    Args:
        update: As it was captured.
        model: The server's model.
        look: At the final layer, where others ask it too.

    Raises:
        LabelError: The learning rate is not known and cannot be estimated.
    """
    local = update.local
    if local is None:
        return Attackable(as_mean(as_gradient(update, model)), messages=_divided(update))
    messages, rate = [], None
    known = local.learning_rate is not None
    if not known:
        rate = estimate_learning_rate(update, model, look)
        update = with_rate(update, rate)
        messages.append(f"The client's learning rate is not known; from the final layer it is estimated at {rate:.3g}.")
    if is_one_step(update):
        gradient = as_gradient(update, model)
        if known:
            gradient, messages = as_mean(gradient), [*messages, *_divided(update)]
        # An estimated rate has taken up the divisor.
        return Attackable(gradient, known, tuple(messages), rate)
    messages.append(
        f"Every step of the attack retraces the client's {local.steps(update.image_count)} local steps, and "
        "takes as many times the time and the memory of a single gradient."
    )
    return Attackable(update, known, tuple(messages), rate)


def _divided(update: CapturedUpdate) -> tuple[str, ...]:
    """That the client divided by another number than that of its images."""
    divisor, count = update.facts.sampling.value.expected, update.image_count
    if divisor is None or divisor == count:
        return ()
    return (
        f"The client divided the sum over its {count} images by {divisor:g}; the gradient is taken times "
        f"{divisor / count:.4g}, so that it is their mean.",
    )


def refine(
    found: Attackable,
    update: CapturedUpdate,
    model: nn.Module,
    labels: Int[Tensor, " batch"],
    look: OneLook | None = None,
) -> Attackable:
    """The exact learning rate of a single step, where the final layer and the labels determine it (``find_scale``).

    Args:
        found: From ``as_attackable``.
        update: As it was captured.
        model: The server's model.
        labels: The batch's labels.
        look: At the final layer, where others ask it too.
    """
    look = look or OneLook()
    if found.scale_known or update.local is None or not is_one_step(update):
        return found
    rate = estimate_learning_rate(update, model, look)
    # Weight decay is not scaled along, so that its share of the step changes with the rate.
    for _ in range(_ROUNDS_OF_DECAY if update.local.weight_decay else 1):
        factor = find_scale(look.final_layer(as_gradient(with_rate(update, rate), model), model), labels)
        if factor is None:
            return found
        rate /= factor
    message = f"The features behind the final layer fit together at a learning rate of {rate:.6g} alone."
    return Attackable(as_gradient(with_rate(update, rate), model), True, (*found.messages, message), rate)


def order_limits(update: CapturedUpdate, labels: Int[Tensor, " batch"], labels_given: bool) -> tuple[str, ...]:
    """Why the local steps are not retraced as they were: nobody told which image was in which, or whose it was.

    Args:
        update: What is attacked.
        labels: The batch's.
        labels_given: Whether the server was told the labels, image by image.
    """
    local, clients = update.local, update.facts.clients.value
    if local is not None and clients > 1 and not is_one_step(update):
        return (
            f"The update is the average of {clients} clients, each with local steps of its own, and the attack "
            "retraces one client whose batches are those of all of them together, so that the weight delta cannot be "
            "met.",
        )
    if local is None or len(local.batches(update.image_count)) == 1 or (not local.shuffled and labels_given):
        return ()
    if not local.shuffled and len(set(labels.tolist())) == 1:
        return ()
    how = "over all images" if local.shuffled else "over images in order of their labels"
    return (
        f"Which image was in which of the client's local steps is not known, and the attack takes each step for one "
        f"{how}, so that the weight delta cannot be met"
        + ("." if local.shuffled else " where they came in another order (labels=3,0,1 gives it)."),
    )


def with_rate(update: CapturedUpdate, rate: float) -> CapturedUpdate:
    """The weight delta with this learning rate."""
    return update.stating(learning_rate=read(rate, "the final layer's gradient"))


def describe(update: CapturedUpdate, found: Attackable, labels_given: bool, *, order_found: bool = False) -> str:
    """What is taken for granted about the client's local steps, in sentences; empty for a gradient.

    Args:
        update: As it was captured.
        found: What is attacked in its place.
        labels_given: Whether the server was told the labels, image by image.
        order_found: Whether the images are known, and with them which was in which step.
    """
    local, facts = update.local, update.facts.local
    if local is None or facts is None:
        return ""
    used = facts if found.update.facts.local is None else found.update.facts.local
    known = _RATES[used.learning_rate.provenance] if local.learning_rate is not None else _RATES[Provenance.READ]
    taken = [name for name in _DESCRIBED if getattr(facts, name).assumed]
    if is_one_step(update):
        # The velocity of a first step is its gradient.
        taken = [name for name in taken if name != "momentum"]
        return _one_step(known, taken, _unsaid(taken, facts))
    rate = found.update.local.learning_rate if found.update.local is not None else None
    batches = local.batches(update.image_count)
    epochs = "1 epoch" if local.epochs == 1 else f"{local.epochs} epochs"
    steps = f"{local.steps(update.image_count)} steps of SGD ({epochs} x {len(batches)} batches)"
    if len(batches) == 1:
        order = "all images are in every step, so that their order does not matter"
    elif order_found:
        order = "which image is in which step follows from the features of its visits"
    elif local.shuffled:
        order = "which image is in which step is not known, and each step is taken for one over all images"
    elif labels_given:
        order = "which image is in which step is taken for known, from the order of the labels that were given"
    else:
        order = "which image is in which step is taken for known, as if images came in order of their labels"
    others = "" if {"momentum", "weight_decay"} & set(taken) else ", known to the server"
    return (
        f"{_subject(taken)} the weight delta of {steps}, learning rate {rate:.3g}, {known}, momentum "
        f"{local.momentum:g} and weight decay {local.weight_decay:g}{others}; {order}.{_unsaid(taken, facts)}"
    )


_RATES = {
    Provenance.TOLD: "known to the server",
    Provenance.READ: "estimated by the server",
    Provenance.ASSUMED: "assumed by the server",
}
_DESCRIBED = {"epochs": "epochs", "batch_size": "batch size", "momentum": "momentum", "weight_decay": "weight decay"}
_STEPS = {"epochs", "batch_size"}


def _one_step(known: str, taken: list[str], unsaid: str) -> str:
    if _STEPS & set(taken):
        return (
            f"The update is taken for the weight delta of one step of SGD, learning rate {known}, and attacked as the "
            f"gradient.{unsaid}"
        )
    return (
        f"The client sent the weight delta of one step of SGD, learning rate {known}: the gradient, but for the "
        f"rounding of the weights.{unsaid}"
    )


def _subject(taken: list[str]) -> str:
    return "The update is taken for" if taken else "The client sent"


def _unsaid(taken: list[str], facts: LocalFacts) -> str:
    """What is assumed of the local steps and what that rests on, in sentences of their own."""
    found = ""
    for source in dict.fromkeys(getattr(facts, name).source for name in taken):
        words = [_DESCRIBED[name] for name in taken if getattr(facts, name).source == source]
        if source:
            found += f" What is assumed of the client's {listed(words)} rests on {source}."
        else:
            found += f" Nobody told the client's {listed(words)}: the commonest is assumed."
    return found

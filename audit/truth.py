"""What the facts make of the private images: where that is not the captured update, a fact is wrong."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ..agents import Objective, ObjectiveConfig, judged_at_once
from ..capture import CapturedUpdate, PrivateBatch, Provenance
from ..capture.defences import defence_words
from ..target import Target, check_smoothing, weigh_evidence
from ..target.weight_deltas import as_attackable
from .doubt import LARGEST_GAP

# What these leave of an update is meant to be far from what the images make of it.
_DISTORTING = frozenset({"noise", "prune", "quantise", "dp_sgd", "soteria"})


def measure_truth_gap(model: nn.Module, private: PrivateBatch, update: CapturedUpdate) -> float | None:
    """Relative distance between the captured update and the one that its facts make of the private images.

    It is zero to rounding where every fact is right and these are the images: the strongest evidence there is, and only
    who holds the private batch can have it.

    Args:
        model: the server's model; it is left as it was.
        private: the true images in [0, 1] and their labels, in the order in which the client trained on them.
        update: what the client sent, with the facts that the attack believed.

    Returns:
        None where no such number can be had: after a defence that distorts the update or is not known, for several
        clients that each clipped or made several steps, where the learning rate is estimated or the order of the
        images is not known.
    """
    names = {one.name for one in update.defences}
    local = update.local
    # What a defence of the client's own does to an update nobody here knows.
    if any(one.is_own for one in update.defences):
        return None
    if names & _DISTORTING or (names and update.facts.clients.value > 1):
        return None
    if local is not None and (_rate_unsure(update) or local.shuffled):
        return None
    if local is not None and update.facts.clients.value > 1 and local.steps(update.image_count) > 1:
        return None
    if update.facts.dropout.value and not update.facts.dropout.assumed:
        return None
    # As the attack takes it: one step as its gradient, and as a mean over the images that came.
    target = Target(as_attackable(update, model).update, model, private.labels)
    terms = replace(ObjectiveConfig(), group_weight=0.0, batch_norm_weight=0.0)
    objective = Objective(target, terms, images_at_once=judged_at_once(update.image_shape))
    return objective.gradient_loss(update.normalisation.apply(private.images))


def _rate_unsure(update: CapturedUpdate) -> bool:
    """Whether nobody told the learning rate: one that was read off the update is an estimate."""
    assert update.facts.local is not None
    rate = update.facts.local.learning_rate
    return rate.value is None or rate.provenance is Provenance.READ


def tell_truth(model: nn.Module, private: PrivateBatch, update: CapturedUpdate) -> str:
    """Whether images that somebody told are those behind the update, in a sentence, before any attack.

    Args:
        model: the server's model; it is left as it was.
        private: the images and labels that were told.
        update: what the client sent. Its facts are first held against it, as an attack does that knows the labels.
    """
    found = weigh_evidence(update, model)
    told, shown = len(private.labels), found.update.image_count
    if told < shown:
        return (
            f"The private images do not give this update: they are {told}, and it is of {shown} or more; nothing will "
            "be called safe."
        )
    believed = found.and_also(check_smoothing(found.update, model, private.labels)).update
    return describe_truth_gap(measure_truth_gap(model, private, believed), believed)


def describe_truth_gap(gap: float | None, update: CapturedUpdate) -> str:
    """What that says of images that somebody told to be those behind the update, in a sentence.

    Args:
        gap: from ``measure_truth_gap``.
        update: what the client sent, with the facts that are believed of it.
    """
    if gap is None:
        why = f" after the client's defence ({defence_words(update.defences)})" if update.defences else ""
        return f"Whether the private images are those behind the update cannot be checked{why}."
    found = f"at them the update that the facts describe is {100 * gap:.2g} % off the captured one"
    if gap <= LARGEST_GAP:
        return (
            f"The private images give this update: {found}. An image that weighs less than that in the gradient could "
            "be another all the same."
        )
    return (
        f"The private images do not give this update: {found}. They are other images, have other labels or another "
        "order, were prepared in another way (size, cut, augmentation), or a fact about the client is wrong; nothing "
        "will be called safe."
    )

"""The number of a client's local steps and their size, held against its weight delta and read off it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..capture import BatchNormMode, CapturedUpdate, Fact, LocalFacts, LocalTraining, assumed, read
from ..peeling.graph import NoGraph, network_graph
from ..peeling.local_steps import LocalSteps
from ..peeling.rules.effort import Effort
from ..peeling.rules.rule import Setting
from ..peeling.rules.visits_read import VisitsRead, visits_read
from .finding import Finding
from .image_count import at_least

_SOURCE = "the visits of images that the weight delta tells apart"
_TOLERANCE = 0.03
# Floating-point operations that the look may take: a tenth of what peeling may by default.
_MOST_OPERATIONS = 1e12


def check_local_steps(update: CapturedUpdate, model: nn.Module) -> Finding:
    """Whether a weight delta is of as many visits of images as the facts say, in steps as large.

    Peeling and retracing rest on both. Visits merge after small steps, of images learned already and of equal ones, so
    that a delta is of at least as many visits as it shows: more than the facts make replace the epochs, which
    stay in doubt, fewer replace and contradict nothing, and as many leave epochs that are assumed in doubt.

    Args:
        update: What the client sent.
        model: The server's model, before the client's steps.
    """
    local = update.local
    if local is None or local.weight_decay:
        return Finding()
    facts = update.facts.local
    assert facts is not None
    vouched = not (facts.epochs.assumed or facts.batch_size.assumed)
    clients = update.facts.clients.value
    each, rest = divmod(update.image_count, clients)
    if rest:
        return Finding()
    if update.batch_norm is not BatchNormMode.EVAL:
        return _of_batches(update, model, local) if clients == 1 else Finding()
    # One step that somebody vouches for shows in the number of visits alone.
    expected = update.image_count if vouched and local.steps(each) == 1 else None
    told = None if facts.batch_size.assumed else clients * len(local.batches(each)[0])
    shown = shown_visits(update, model, expected, told)
    if shown is None:
        return Finding()
    if shown.visits < update.image_count * local.epochs:
        return _fewer(shown.visits, update.image_count * local.epochs)
    return _as_many_or_more(update, model, shown)


def _as_many_or_more(update: CapturedUpdate, model: nn.Module, shown: VisitsRead) -> Finding:
    """What visits say of the facts that are no fewer than these make."""
    local, facts, clients = update.local, update.facts.local, update.facts.clients.value
    assert local is not None
    assert facts is not None
    if shown.visits > update.image_count * local.epochs and shown.visits % update.image_count:
        if clients > 1 or facts.epochs.assumed or shown.visits % local.epochs:
            return _no_whole_epochs(local, shown.visits, update.image_count)
        return _more_images(update, model, local, shown.visits)
    return _read_off(local, shown, update.image_count, clients, facts)


def _of_batches(update: CapturedUpdate, model: nn.Module, local: LocalTraining) -> Finding:
    """Where batch norm ran on each batch's own statistics, more visits than the facts make replace the epochs, and the
    number of steps, where there are as many or more, a size of the steps that makes another number of these; fewer
    visits may have merged, and so may their steps."""
    shown = shown_visits(update, model)
    if shown is None or shown.visits < update.image_count * local.epochs:
        return Finding()
    whole = replace(local, epochs=shown.visits // update.image_count)
    if shown.first is not None and whole.steps(update.image_count) == shown.visits // shown.first:
        # As many steps as the facts make, whose sizes may differ. Of a size that nobody told nothing follows, but where
        # no other makes as many.
        assert update.facts.local is not None
        doubted = update.facts.local.batch_size.assumed and not _no_other(update.image_count, shown.first)
        first = None if doubted else len(local.batches(update.image_count)[0])
        shown = replace(shown, first=first, averaged=False)
    return _as_many_or_more(update, model, shown)


def shown_visits(
    update: CapturedUpdate, model: nn.Module, expected: int | None = None, told: int | None = None
) -> VisitsRead | None:
    """What the delta of a client shows of its steps; None where nothing, or where the network cannot be read.

    It is looked whether or not images are to be peeled, since retracing rests on the steps too; a limit of its own
    bounds what that may cost.

    Args:
        update: A weight delta without weight decay.
        model: The server's model, before the client's steps.
        expected: See `visits_read`.
        told: See `visits_read`.
    """
    graph = network_graph(model, update.image_shape, update.batch_norm, update.image_count)
    if isinstance(graph, NoGraph):
        return None
    gradients = {name: -one for name, one in update.gradients.items() if name in graph.tensors}
    # Where batches are told apart by their statistics, the update is that of some steps, of whatever sizes.
    steps = None if update.batch_norm is BatchNormMode.EVAL else LocalSteps((1,), 1.0)
    try:
        setting = Setting(graph, gradients, 1, _TOLERANCE, Effort(_MOST_OPERATIONS), steps)
        return visits_read(setting, expected, told)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None


def _fewer(visits: int, expected: int) -> Finding:
    """Told rightly or not: nothing is replaced or contradicted."""
    return Finding(
        messages=(
            f"The weight delta shows {_visits(visits)}, and the facts make {expected}: there are fewer, or visits "
            "merge, as after small steps, of images learned already or of equal ones; the facts are left as they are.",
        )
    )


def _no_whole_epochs(local: LocalTraining, visits: int, images: int) -> Finding:
    sentence = (
        f"at least {_visits(visits)} show in the weight delta, more than {_epochs(local)} of {_images(images)} make: "
        "there are more epochs or more images than that"
    )
    return Finding(contradictions={"epochs": sentence}, messages=(f"{sentence[0].upper()}{sentence[1:]}.",))


def _more_images(update: CapturedUpdate, model: nn.Module, local: LocalTraining, visits: int) -> Finding:
    """As many as make the visits in the epochs that somebody vouches for; more in as many, or other epochs, may have
    merged, so that they stay in doubt."""
    count = visits // local.epochs
    sentence = (
        f"at least {_visits(visits)} show in the weight delta, more than {_epochs(local)} of "
        f"{_images(update.image_count)} make; in as many epochs {_images(count)} make them, and {count} are attacked"
    )
    message = f"{sentence[0].upper()}{sentence[1:]}."
    more = {"image_count": assumed(count, _SOURCE)}
    # What is a step of all images is one of more now.
    found = check_local_steps(update.stating(**more), model)
    # What is told, and not so, is shown to be contradicted beside the number that takes its place.
    against = {} if update.facts.image_count.assumed else {"image_count": sentence}
    return replace(
        found,
        facts={**found.facts, **more},
        contradictions={**found.contradictions, **against},
        messages=(message, *found.messages),
        limits=(at_least(count),),
    )


def _read_off(local: LocalTraining, shown: VisitsRead, images: int, clients: int, known: LocalFacts) -> Finding:
    """Epochs where there are more visits than the facts make, and the size of a step where it is seen."""
    each, epochs = images // clients, shown.visits // images
    facts: dict[str, Fact[Any]] = {}
    if epochs > local.epochs:
        # Others may have merged, so that the number is used and stays in doubt.
        facts["epochs"] = assumed(epochs, _SOURCE)
    size = _step_size(shown, each, clients)
    other = size is not None and size != len(local.batches(each)[0])
    # Of equal images the first step shows too few as well: where visits may have merged, it is in doubt too. Where as
    # many show as epochs that somebody vouches for make, none have.
    settled = epochs == local.epochs and not known.epochs.assumed
    if size is not None and (other or (settled and known.batch_size.assumed)):
        known_now = settled and (not shown.averaged or _no_other(each, size))
        facts["batch_size"] = (read if known_now else assumed)(None if size == each else size, _SOURCE)
    if not facts:
        return Finding()
    found = replace(local, **{name: fact.value for name, fact in facts.items()})
    words = f"At least {_visits(shown.visits)} show in the weight delta, as in {_in_words(found, each, size)}"
    words += " on average" if size is not None and shown.averaged and not _no_other(each, size) else ""
    same = epochs == local.epochs and not other
    said = "" if same else f", where the facts say {_in_words(local, each, size)}; what it shows is used"
    return Finding(facts=facts, messages=(f"{words}{said}.",))


def _step_size(shown: VisitsRead, each: int, clients: int) -> int | None:
    """Images in a step of one client, as its first one shows; None where it does not."""
    size, rest = divmod(shown.first or 0, clients)
    return size if size and not rest and size <= each else None


def _no_other(each: int, size: int) -> bool:
    """Whether steps of no other size, of which the last one may be smaller, are as many as whole ones of this one."""
    return size == each or -(-each // (size + 1)) < each // size


def _visits(count: int) -> str:
    return f"{count} visit{'s' * (count != 1)} of images"


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def _epochs(local: LocalTraining) -> str:
    return "1 epoch" if local.epochs == 1 else f"{local.epochs} epochs"


def _in_words(local: LocalTraining, each: int, size: int | None) -> str:
    """Of the size of a step nothing is said where none is seen."""
    return _epochs(local) if size is None else f"{_epochs(local)} of steps of {len(local.batches(each)[0])}"

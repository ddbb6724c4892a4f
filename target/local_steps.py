"""The number of a client's local steps and their size, held against its weight delta and read off it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..capture import BatchNormMode, CapturedUpdate, Fact, LocalTraining, read
from ..peeling.graph import NoGraph, network_graph
from ..peeling.rules.rule import Setting
from ..peeling.rules.visits_read import VisitsRead, visits_read
from .finding import Finding

_SOURCE = "the taps of the weight delta"
_TOLERANCE = 0.03


def check_local_steps(update: CapturedUpdate, model: nn.Module) -> Finding:
    """Whether a weight delta is of as many visits of images as the facts say, in steps as large.

    Told epochs and batches that the delta contradicts give way to what it shows: peeling and retracing rest on them.

    Args:
        update: What the client sent.
        model: The server's model, before the client's steps.
    """
    local = update.local
    if local is None or local.weight_decay or update.batch_norm is not BatchNormMode.EVAL:
        return Finding()
    facts = update.facts.local
    assert facts is not None
    vouched = not (facts.epochs.assumed or facts.batch_size.assumed)
    clients = update.facts.clients.value
    each, rest = divmod(update.image_count, clients)
    if rest:
        return Finding()
    # One step that somebody vouches for shows in the number of visits alone.
    shown = shown_visits(update, model, update.image_count if vouched and local.steps(each) == 1 else None)
    if shown is None:
        return Finding()
    return _held_against(local, shown, update.image_count, clients, vouched)


def shown_visits(update: CapturedUpdate, model: nn.Module, expected: int | None = None) -> VisitsRead | None:
    """What the delta of a client shows of its steps; None where nothing, or where the network cannot be read.

    Args:
        update: A weight delta without weight decay, with batch norm on running statistics.
        model: The server's model, before the client's steps.
        expected: See `visits_read`.
    """
    graph = network_graph(model, update.image_shape, update.batch_norm, update.image_count)
    if isinstance(graph, NoGraph):
        return None
    gradients = {name: -one for name, one in update.gradients.items() if name in graph.tensors}
    try:
        return visits_read(Setting(graph, gradients, 1, _TOLERANCE), expected)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None


def _held_against(local: LocalTraining, shown: VisitsRead, images: int, clients: int, vouched: bool) -> Finding:
    each = images // clients
    visits = f"the weight delta shows {shown.visits} visit{'s' * (shown.visits != 1)} of images"
    epochs, rest = divmod(shown.visits, images)
    if rest or not epochs:
        some = f"{images} image{'s' * (images != 1)}"
        sentence = f"{visits}, which are no whole epochs of {some}: there are others than that, or some were left out"
        return Finding(contradictions={"epochs": sentence}, messages=(f"{sentence[0].upper()}{sentence[1:]}.",))
    facts: dict[str, Fact[Any]] = {"epochs": read(epochs, _SOURCE)}
    size = _step_size(shown, each, clients)
    if size is not None:
        facts["batch_size"] = read(None if size == each else size, _SOURCE)
    found = replace(local, **{name: fact.value for name, fact in facts.items()})
    same = found.epochs == local.epochs and found.batches(each) == local.batches(each)
    if same and vouched:
        return Finding()
    words = f"{visits}, {_in_words(found, each)}"
    said = "" if same else f", where the facts say {_in_words(local, each)}; what it shows is used"
    return Finding(facts=facts, messages=(f"{words[0].upper()}{words[1:]}{said}.",), resolved=frozenset(facts))


def _step_size(shown: VisitsRead, each: int, clients: int) -> int | None:
    """Images in a step of one client, as its first one shows; None where it does not."""
    size, rest = divmod(shown.first or 0, clients)
    return size if size and not rest and size <= each else None


def _in_words(local: LocalTraining, each: int) -> str:
    epochs = "1 epoch" if local.epochs == 1 else f"{local.epochs} epochs"
    return f"{epochs} of steps of {len(local.batches(each)[0])}"

"""Before the first step: all that is found once and given to every seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from ..capture import BatchNormMode, CapturedUpdate, LabelError, OneLook, RecoveredLabels, UpdateError, defence_words
from ..capture.copying import copy_model
from ..capture.fitting import fit
from ..capture.stated import StatedFact
from ..peeling import Anchor, KnownFeatures, find_tap_cut, known_by_peeling, known_by_taps
from ..peeling.progress import Tell, unheard
from ..peeling.record import PeelingRecord
from .beginning import known_start
from .belief import Belief
from .evidence import Evidence, weigh_evidence
from .finding import Finding
from .labels import JOINT, are_unread, given_labels, joint_labels, labels_left_out, require_classes
from .request import Request
from .room import require_room
from .second_derivative import require_second_derivative
from .solving import Solved, passes_head, solve, with_rate_read
from .target import Target
from .weight_deltas import Attackable, as_attackable, describe, order_limits


@dataclass(frozen=True)
class Preparation:
    """What every seed is given, and what a person should know about it."""

    target: Target
    labels: RecoveredLabels
    messages: tuple[str, ...]
    belief: Belief
    """What the update is taken for."""
    training: str = ""
    """What is taken for granted about the client's local steps; empty for a gradient."""
    facts: tuple[StatedFact, ...] = ()
    """What is believed of the client, each fact with how it is known, the most decisive first."""
    limits: tuple[str, ...] = ()
    """Why the images say less than they seem to, one sentence each: with one, no verdict is reassuring."""
    known: KnownFeatures | None = None
    """Features of every image that the gradient determines."""
    peeling: PeelingRecord | None = None
    """What peeling did; None where it was left out."""


def prepare(
    update: CapturedUpdate,
    model: nn.Module,
    request: Request,
    generator: nn.Module | None = None,
    tell: Tell = unheard,
) -> Preparation:
    """Hold the facts against the update, recover (or take) the labels, and peel layers where the update allows it.

    Args:
        update: What the server holds.
        model: The server's model. It is copied.
        request: What the attack asks for.
        generator: Within whose range the images are looked for, if the attack has one.
        tell: Told what it is at, in a few words, wherever that may take a while.

    Raises:
        UpdateError: The update does not fit the model, or what it claims does not fit the memory.
        ModelError: The model cannot be attacked as it is: it does not take the client's batch, cannot be copied, or its
            gradient has no derivative.
        LabelError: Labels, or a learning rate that is not known, cannot be recovered; or the given labels do not fit.
    """
    update, model = fit(update, model)
    model = copy_model(model)
    update.require_match(model)
    require_room(update, model, request)
    if not any(bool(gradient.any()) for gradient in update.gradients.values()):
        raise UpdateError(
            f"every entry of the update is zero, so it shows nothing (defence: {defence_words(update.defences)}): "
            "give an update of which a defence has left something."
        )
    look = OneLook()
    evidence = weigh_evidence(update, model, look)
    request, left_out = labels_left_out(request, update, evidence.update)
    evidence = evidence.and_also(Finding(messages=tuple(filter(None, [left_out]))))
    update = evidence.update
    found = as_attackable(update, model, look)
    if request.labels == JOINT:
        return _with_unknown_labels(evidence, found, model, request, look)
    given = given_labels(request.labels, update)
    if given is not None:
        require_classes(given, update, model)
    solved = solve(evidence, found, model, request, given, look, tell)
    unread = are_unread(solved.labels)
    if unread:
        solved = _with_labels_left_open(solved, generator)
    evidence, found, labels = solved.evidence, solved.found, solved.labels
    if not solved.by_taps:
        evidence = evidence.and_also(Finding(limits=order_limits(found.update, labels.labels, solved.given)))
    _require_derivatives(request, model, found.update, solved.anchor)
    target = replace(_target(solved, model, generator, look), joint_labels=unread)
    target = _finished(target, request)
    messages = [*evidence.messages, *found.messages, *solved.messages]
    if target.start is not None and target.start.is_known:
        record = solved.record
        some = record is not None and record.repeats is not None and record.repeats.unseen
        which = "the images that could be found" if some else "the images"
        messages.append(f"These are {which}: every seed begins at them.")
    known = _known_features(solved, model, request)
    if known is not None and known is not solved.known and known.output:
        messages.append(
            f"By {known.way} the gradient determines {known.words}, estimated error {known.error:.1g}, whatever lies "
            "behind."
        )
    if known is not None and (known is solved.known or known.output):
        messages.append(
            "Whether or not pictures can be made of these activations: whoever holds an image can tell by them whether "
            "it was in the batch."
        )
    messages += evidence.limits
    training = describe(evidence.update, found, solved.given, order_found=solved.by_taps)
    facts = evidence.stated(model)
    return Preparation(
        target, labels, tuple(messages), evidence.belief, training, facts, evidence.limits, known, solved.record
    )


def _with_labels_left_open(solved: Solved, generator: nn.Module | None) -> Solved:
    """Where neither the final layer nor what taps give tells the labels: they are optimised with the images.

    Raises:
        LabelError: Images are looked for within the range of a generator, which finds no labels.
    """
    why = (
        "The update lacks the gradient of the final layer (frozen, or left out), off which labels are read, and the "
        "derivative of the loss at that layer's input, which would tell them too, does not follow"
    )
    if generator is not None:
        raise LabelError(f"{why}; with agents.generator give the labels themselves, such as labels=0,3.")
    limit = (
        f"{why}: labels are optimised together with the images, and a server that knows them may see more (labels=0,3 "
        "gives them)."
    )
    labels = joint_labels(torch.zeros(len(solved.labels.labels), 1))
    return replace(solved, labels=labels, evidence=solved.evidence.and_also(Finding(limits=(limit,))))


def _with_unknown_labels(
    evidence: Evidence, found: Attackable, model: nn.Module, request: Request, look: OneLook
) -> Preparation:
    """Where labels are optimised with the images, nothing is peeled."""
    update = evidence.update
    if found.update.local is not None:
        raise LabelError(
            "labels=joint optimises labels with the images of one step, and this update is the weight delta of "
            "several; give labels=counts, or the labels themselves."
        )
    unknown = joint_labels(torch.zeros(update.image_count, 1))
    _require_derivatives(request, model, found.update, None)
    target = Target(found.update, model, unknown.labels, scale_known=found.scale_known, joint_labels=True, look=look)
    target = _finished(target, request)
    evidence = with_rate_read(evidence, found)
    said = (*evidence.messages, *found.messages, *evidence.limits)
    training = describe(update, found, False)
    return Preparation(target, unknown, said, evidence.belief, training, evidence.stated(model), evidence.limits)


def _target(solved: Solved, model: nn.Module, generator: nn.Module | None, look: OneLook) -> Target:
    """With what was peeled, and where seeds begin by it."""
    found, anchor, taps = solved.found, solved.anchor, solved.taps
    start = None if anchor is None else known_start(anchor, found.update, model)
    if start is None and taps is not None:
        start = taps.start
    labels, cut = solved.labels.labels, None if taps is None else taps.cut
    return Target(found.update, model, labels, anchor, found.scale_known, generator, cut=cut, start=start, look=look)


def _finished(target: Target, request: Request) -> Target:
    return target.finished(request.allows_for_defences, statistics=request.statistics)


def _known_features(solved: Solved, model: nn.Module, request: Request) -> KnownFeatures | None:
    """What the gradient determines of every image: where peeling came no further than the final layer, by taps."""
    update, anchor = solved.found.update, solved.anchor
    if solved.known is not None:
        return solved.known
    wanted = request.peeling.enabled and request.peeling.taps and request.gradient
    # With the batch's own statistics the cotangents sum to zero, and the pencil of the taps is singular.
    possible = update.local is None and update.batch_norm is BatchNormMode.EVAL
    passed = not solved.by_taps and passes_head(anchor, model)
    # Where the network could be read, all its taps were tried.
    tried = solved.taps is not None and solved.taps.record is not None and not solved.taps.record.footholds
    left = wanted and possible and not passed and not tried
    cut = find_tap_cut(update, model, request.peeling.tolerance) if left else None
    if cut is not None:
        return known_by_taps(cut)
    if anchor is None:
        return None
    return known_by_peeling(anchor, "taps, and the equations behind them," if solved.by_taps else "layer peeling")


def _require_derivatives(request: Request, model: nn.Module, update: CapturedUpdate, anchor: Anchor | None) -> None:
    if request.gradient:
        require_second_derivative(model, update, anchor)

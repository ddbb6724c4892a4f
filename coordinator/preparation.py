"""Before the first step: labels, layer peeling, and what identifies the run."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..agents import load_generator
from ..agents.second_derivative import client_batch, require_second_derivative
from ..capture import (
    BatchNormMode,
    CapturedUpdate,
    LabelError,
    OneLook,
    RecoveredLabels,
    UpdateError,
    client_mode,
    defence_words,
    weight_hash,
)
from ..capture.copying import copy_model
from ..capture.fitting import fit
from ..capture.stated import StatedFact
from ..peeling import Anchor, KnownFeatures, find_tap_cut, known_by_peeling, known_by_taps
from ..target import Finding, Target, weigh_evidence
from ..target.weight_deltas import describe, order_limits, settle
from .config import JOINT, AttackConfig, flatten
from .solving import Solved, passes_head, solve, with_rate_read

# Settings that say where a run computes, or where a file lies whose content is compared instead.
_PLACEMENT = ("agents.gpus", "agents.cpus", "agents.minimum", "agents.patience", "agents.generator_weights")


@dataclass(frozen=True)
class Preparation:
    """What every seed is given, and what a person should know about it."""

    target: Target
    labels: RecoveredLabels
    messages: tuple[str, ...]
    training: str = ""
    """What is taken for granted about the client's local steps; empty for a gradient."""
    facts: tuple[StatedFact, ...] = ()
    """What is believed of the client, each fact with how it is known, the most decisive first."""
    limits: tuple[str, ...] = ()
    """Why the images say less than they seem to, one sentence each: with one, no verdict is reassuring."""
    known: KnownFeatures | None = None
    """Features of every image that the gradient determines."""


def prepare(
    update: CapturedUpdate, model: nn.Module, config: AttackConfig, generator: nn.Module | None = None
) -> Preparation:
    """Recover (or take) the labels, then peel layers where the update allows it.

    Raises:
        UpdateError: The update does not fit the model.
        ModelError: The model cannot be attacked as it is: it does not take the client's batch, cannot be copied, or its
            gradient has no derivative.
        LabelError: Labels, or a learning rate that is not known, cannot be recovered; or the given labels do not fit.
    """
    update, model = fit(update, model)
    model = copy_model(model)
    update.require_match(model)
    if not any(bool(gradient.any()) for gradient in update.gradients.values()):
        raise UpdateError(
            f"every entry of the update is zero, so it shows nothing (defence: {defence_words(update.defences)}): "
            "give an update of which a defence has left something."
        )
    look = OneLook()
    evidence = weigh_evidence(update, model, look)
    update = evidence.update
    found = settle(update, model, look)
    if config.labels == JOINT:
        if found.update.local is not None:
            raise LabelError(
                "labels=joint optimises labels with the images of one step, and this update is the weight delta of "
                "several; give labels=counts, or the labels themselves."
            )
        unknown = joint_labels(torch.zeros(update.image_count, 1))
        _require_derivatives(config, model, found.update, None)
        target = Target(
            found.update, model, unknown.labels, scale_known=found.scale_known, joint_labels=True, look=look
        )
        target = _finished(target, config)
        evidence = with_rate_read(evidence, found)
        said = (*evidence.messages, *found.messages, *evidence.limits)
        training = describe(update, found, False)
        return Preparation(target, unknown, said, training, evidence.stated(model), evidence.limits)
    given = given_labels(config.labels, update)
    if given is not None:
        _require_classes(given, update, model)
    solved = solve(evidence, found, model, config, given, look)
    evidence, found, labels = solved.evidence, solved.found, solved.labels
    evidence = evidence.and_also(Finding(limits=order_limits(found.update, labels.labels, given is not None)))
    _require_derivatives(config, model, found.update, solved.anchor)
    target = Target(found.update, model, labels.labels, solved.anchor, found.scale_known, generator, look=look)
    target = _finished(target, config)
    messages = [*evidence.messages, *found.messages, *solved.messages]
    known = _known_features(solved, model, config)
    if known is not None and known.output:
        messages.append(
            f"By {known.way} the gradient determines {known.words}, estimated error {known.error:.1g}, whatever lies "
            "behind. Whether or not pictures of them can be made: whoever holds an image can tell by them whether it "
            "was in the batch."
        )
    messages += evidence.limits
    training = describe(update, found, given is not None)
    return Preparation(target, labels, tuple(messages), training, evidence.stated(model), evidence.limits, known)


def _finished(target: Target, config: AttackConfig) -> Target:
    objective = config.objective
    return target.finished(objective.allows_for_defences, statistics=objective.batch_norm_weight > 0)


def _known_features(solved: Solved, model: nn.Module, config: AttackConfig) -> KnownFeatures | None:
    """What the gradient determines of every image: where peeling came no further than the final layer, by taps."""
    update, anchor = solved.found.update, solved.anchor
    wanted = config.peeling.enabled and config.peeling.taps and config.objective.gradient_weight > 0
    # With the batch's own statistics the cotangents sum to zero, and the pencil of the taps is singular.
    possible = update.local is None and update.batch_norm is BatchNormMode.EVAL
    passed = not solved.by_taps and passes_head(anchor, model)
    cut = find_tap_cut(update, model, config.peeling.tolerance) if wanted and possible and not passed else None
    if cut is not None:
        return known_by_taps(cut)
    if anchor is None:
        return None
    return known_by_peeling(anchor, "taps, and the equations behind them," if solved.by_taps else "layer peeling")


def _require_derivatives(config: AttackConfig, model: nn.Module, update: CapturedUpdate, anchor: Anchor | None) -> None:
    if config.objective.gradient_weight > 0:
        require_second_derivative(model, update, anchor)


def find_generator(config: AttackConfig, update: CapturedUpdate) -> nn.Module | None:
    """The user's generator, if the attack has one.

    Raises:
        ModelError: It cannot be loaded; see `load_generator`.
    """
    if config.agents.generator is None:
        return None
    weights = config.agents.generator_weights
    return load_generator(config.agents.generator, weights, update.image_count, update.image_shape)


def joint_labels(probabilities: Float[Tensor, "batch classes"]) -> RecoveredLabels:
    """The likeliest class of each image, where labels were optimised with the images."""
    confidence, labels = probabilities.max(1)
    return RecoveredLabels(
        labels=labels,
        confidence=confidence,
        method=JOINT,
        assumption="Labels were optimised together with the images, so that each of them holds for its image only.",
        warnings=(),
    )


def given_labels(text: str, update: CapturedUpdate) -> RecoveredLabels | None:
    """Labels that the user states, such as ``0,0,3``; None when the text names a rule.

    They are sorted, except where their order says which image was in which local step.
    """
    words = text.split(",")
    if not all(word.strip().isdigit() for word in words):
        return None
    values = [int(word) for word in words]
    if update.local is None or len(update.local.batches(update.image_count)) == 1 or update.local.shuffled:
        values.sort()
    if len(values) != update.image_count:
        raise LabelError(f"labels={text}: {len(values)} labels were given for {update.image_count} images.")
    return RecoveredLabels(
        labels=torch.tensor(values),
        confidence=torch.ones(len(values)),
        method="given",
        assumption="The server knows the labels.",
        warnings=(),
    )


def _require_classes(labels: RecoveredLabels, update: CapturedUpdate, model: nn.Module) -> None:
    like = next(model.parameters())
    with torch.no_grad(), client_mode(model, BatchNormMode.EVAL):
        classes = model(like.new_zeros(client_batch(update), *update.image_shape)).shape[-1]
    largest = int(labels.labels.max())
    if largest >= classes:
        raise LabelError(f"labels names class {largest}, but the model's classes are 0 to {classes - 1}.")


def identity(config: AttackConfig, update: CapturedUpdate, generator: nn.Module | None = None) -> dict[str, Any]:
    """All that decides the numbers of a run, flat and plain: a checkpoint is continued only where this is equal."""
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(AttackConfig)}
    flat = {
        name: value.value if isinstance(value, Enum) else value
        for name, value in flatten(settings)
        if name not in _PLACEMENT
    }
    digest = hashlib.sha256()
    for name, gradient in update.gradients.items():
        digest.update(name.encode())
        digest.update(gradient.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    flat |= {f"fact.{name}": str(fact.value) for name, fact in update.facts.items()}
    if generator is not None:
        flat["generator"] = weight_hash(generator)
    return flat | {"update": digest.hexdigest(), "model": update.weight_hash}

"""Before the first step: labels, layer peeling, and what identifies the run."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn

from ..agents import Target
from ..capture import (
    BatchNormMode,
    CapturedUpdate,
    LabelError,
    RecoveredLabels,
    UpdateError,
    UpdateKind,
    client_mode,
    recover_labels,
)
from ..peeling import peel
from .config import AttackConfig

# Settings that say where a run computes, not what.
_PLACEMENT = ("agents.gpus", "agents.cpus", "agents.minimum", "agents.patience")


@dataclass(frozen=True)
class Preparation:
    """What every seed is given, and what a person should know about it."""

    target: Target
    labels: RecoveredLabels
    messages: tuple[str, ...]


def prepare(update: CapturedUpdate, model: nn.Module, config: AttackConfig) -> Preparation:
    """Recover (or take) the labels, then peel layers where the update allows it.

    Raises:
        UpdateError: The update does not fit the model.
        LabelError: Labels cannot be recovered, or the given ones do not fit.
    """
    update.require_match(model)
    if update.kind is not UpdateKind.GRADIENT:
        raise UpdateError(
            f"the update holds a {update.kind.value}; only the gradient of one step can be attacked: capture that."
        )
    given = given_labels(config.labels, update)
    if given is not None:
        _require_classes(given, update, model)
    labels = given or recover_labels(update, model, config.labels)
    messages = list(labels.warnings)
    anchor = None
    if config.objective.gradient_weight > 0:
        peeling = peel(update, model, labels.labels, config.peeling)
        anchor = peeling.anchor
        messages.append(peeling.message)
    return Preparation(Target(update, model, labels.labels, anchor), labels, tuple(messages))


def given_labels(text: str, update: CapturedUpdate) -> RecoveredLabels | None:
    """Labels that the user states, such as ``0,0,3``; None when the text names a rule."""
    words = text.split(",")
    if not all(word.strip().isdigit() for word in words):
        return None
    values = sorted(int(word) for word in words)
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
        classes = model(like.new_zeros(1, *update.image_shape)).shape[-1]
    largest = int(labels.labels.max())
    if largest >= classes:
        raise LabelError(f"labels names class {largest}, but the model's classes are 0 to {classes - 1}.")


def identity(config: AttackConfig, update: CapturedUpdate) -> dict[str, Any]:
    """All that decides the numbers of a run, flat and plain: a checkpoint is continued only where this is equal."""
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(AttackConfig)}
    flat = {name: value for name, value in _flat(settings).items() if name not in _PLACEMENT}
    digest = hashlib.sha256()
    for name, gradient in update.gradients.items():
        digest.update(name.encode())
        digest.update(gradient.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return flat | {"update": digest.hexdigest(), "model": update.weight_hash}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found |= _flat(dataclasses.asdict(value), f"{prefix}{name}.")
        elif isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value.value if isinstance(value, Enum) else value
    return found

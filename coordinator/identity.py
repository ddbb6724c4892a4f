"""What identifies a run, and the user's generator, which is part of it."""

from __future__ import annotations

import dataclasses
import hashlib
from enum import Enum
from typing import Any

import torch
from torch import nn

from ..agents import load_generator
from ..capture import CapturedUpdate, weight_hash
from ..plugins import Plugin, PluginKind, find_plugin
from .config import AttackConfig, flatten

# Settings that say where a run computes, how often it is saved, or where a file lies whose content is compared instead.
_PLACEMENT = frozenset({"agents.gpus", "agents.cpus", "agents.minimum", "agents.patience", "agents.generator_weights"})
_PLACEMENT |= {"coordinator.save_every"}


def find_generator(config: AttackConfig, update: CapturedUpdate) -> nn.Module | None:
    """The user's generator, if the attack has one.

    Raises:
        ModelError: It cannot be loaded; see `load_generator`.
    """
    if config.agents.generator is None:
        return None
    weights = config.agents.generator_weights
    return load_generator(config.agents.generator, weights, update.image_count, update.image_shape)


def attack_plugins(config: AttackConfig) -> list[Plugin]:
    """Code of the user's own that the attack calls, found.

    Raises:
        PluginError: It is not there, or cannot be imported.
    """
    named = [
        (PluginKind.LABEL_RULE, config.own_label_rule),
        (PluginKind.DECODER, config.peeling.own_decoder),
        (PluginKind.REGISTRATION, config.registration.own_method),
        *((PluginKind.PRIOR, prior.name) for prior in config.objective.own_priors),
    ]
    return [find_plugin(kind, name) for kind, name in named if name is not None]


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
    # Other code under the same name makes another run.
    flat |= {f"{one.kind} {one.name}": one.source for one in attack_plugins(config)}
    return flat | {"update": digest.hexdigest(), "model": update.weight_hash}

"""What one check of the evidence finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..capture import Fact


@dataclass(frozen=True)
class Finding:
    """Facts that follow from the update, and what in it speaks against facts that were told or assumed."""

    facts: Mapping[str, Fact[Any]] = field(default_factory=dict)
    """In place of those of the record, by name."""
    contradictions: Mapping[str, str] = field(default_factory=dict)
    """One sentence for each fact, by its name: what speaks against it."""
    messages: tuple[str, ...] = ()
    """What else a person should know, one sentence each."""
    limits: tuple[str, ...] = ()
    """Why the images of an attack say less than they seem to, one sentence each: with one, no result is reassuring."""
    resolved: frozenset[str] = frozenset()
    """Facts that are no longer contradicted: their value was found."""
    sign_turned: bool = False
    """Whether the update is the negative of what it was taken for."""
    buffers_left_out: bool = False
    """Whether the batch-norm buffers that came are not the client's step's: the attack goes without them."""

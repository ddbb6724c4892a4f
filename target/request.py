"""What an attack asks for before its first step."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..peeling import PeelingConfig


@dataclass(frozen=True)
class Request:
    """What the preparation must know of an attack."""

    labels: str = "auto"
    """A rule, or the labels themselves: 0,1,2,3."""
    peeling: PeelingConfig = field(default_factory=PeelingConfig)
    """Which layers are solved."""
    gradient: bool = True
    """Whether the attack looks at the gradient at all; a control does not."""
    allows_for_defences: bool = True
    """Whether its match takes account of the defence that the update shows or the client states."""
    statistics: bool = True
    """Whether it has the prior on batch norm's statistics."""
    seed: int = 0
    """Of the agent that begins at a start itself; the others begin near it."""
    images_at_once: int = 0
    """Of which a graph is held; 0: of the whole batch."""

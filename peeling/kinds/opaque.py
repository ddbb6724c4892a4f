"""An operation that is never crossed."""

from __future__ import annotations

from dataclasses import dataclass

from .kind import Kind, Needs


@dataclass(frozen=True)
class Opaque(Kind):
    """Nothing is known of it but what enters."""

    why: str
    """The operation's name, or what it did otherwise than its closed form."""
    needs = Needs.UNKNOWN

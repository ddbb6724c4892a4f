"""Checkpoints on the way, and those within a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..storage.tensor_file import StateFile
from .progress import Progress


@dataclass(frozen=True)
class Part:
    """A checkpoint within a round that is due."""

    round: int
    number: int
    """Later ones have larger ones, also those of a coordinator that continues the run."""
    positions: tuple[int, ...]
    """Of the seeds whose states belong to it."""


@dataclass(frozen=True)
class UnderWay:
    """The round that seeds make now."""

    index: int
    positions: tuple[int, ...]
    progress: Progress
    """As the round began."""
    steps: tuple[int, int] | None
    """Between which a state belongs to it; None where seeds do not wait for each other."""


@dataclass
class AwaitedRound:
    """A checkpoint that is being saved: complete when every seed's state and the coordinator's own part are there."""

    index: int
    wanted: frozenset[int]
    part: int | None = None
    """See `state_name`."""
    steps: tuple[int, int] | None = None
    """Of a part; see `UnderWay`."""
    states: dict[int, StateFile] = field(default_factory=dict)
    facts: Mapping[str, Any] | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.facts is not None and self.states.keys() == self.wanted

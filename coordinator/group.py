"""What the coordinator needs of its agents, whatever runs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from ..agents import Candidate, Target


class AgentGroup(Protocol):
    """One agent per seed, in the order of the seeds. ``cluster`` implements it with Ray actors."""

    seeds: tuple[int, ...]

    def start(self, target: Target) -> tuple[str, ...]:
        """Give every agent what is known about the batch; returns the agents' messages."""

    def run_round(
        self,
        until_step: int,
        consensus: Float[Tensor, "batch channel height width"] | None,
        orders: Int[Tensor, "seed batch"],
    ) -> list[Candidate]:
        """``sync``: every agent descends until a step; returns when the last one is there.

        Args:
            until_step: Absolute step.
            consensus: Normalised images, or None before there is one.
            orders: For each seed, which image of the consensus belongs at each place of its batch.
        """

    def begin(self, period: int) -> None:
        """``async``: every agent descends to its last step on its own, looking for a new consensus every period."""

    def latest(self) -> list[Candidate]:
        """``async``: the newest candidate of each agent, with the losses recorded since the last call."""

    def broadcast(
        self, consensus: Float[Tensor, "batch channel height width"], orders: Int[Tensor, "seed batch"]
    ) -> None:
        """``async``: the consensus that agents take up when they next look."""

    def save(self, folder: Path) -> dict[str, str]:
        """Every agent writes its state into the folder; returns the SHA-256 of each file by name."""

    def restore(self, folder: Path) -> None:
        """Every agent continues from its file in the folder."""

    def steps(self) -> Sequence[int]:
        """Where each agent is, without waiting for its round."""

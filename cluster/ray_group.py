"""The coordinator's agents as Ray actors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from jaxtyping import Float, Int
from torch import Tensor

from ..agents import Candidate, Target
from ..coordinator import AttackConfig
from .agent_actor import AgentActor
from .resources import Share
from .transport import unpack

# One thread computes; the others answer questions about progress.
_ACTOR_THREADS = 4


class RayGroup:
    """One actor per seed. Rounds cost one call per agent; the consensus is put into the object store once.

    Args:
        config: The attack.
        share: Resources of each agent.
    """

    def __init__(self, config: AttackConfig, share: Share) -> None:
        self.seeds = tuple(config.seed + index for index in range(config.agents.count))
        self._actors = [
            AgentActor.options(
                num_cpus=share.cpus, num_gpus=share.gpus, max_concurrency=_ACTOR_THREADS, name=f"agent-{seed}"
            ).remote(seed, config.objective, config.agents, share.threads)
            for seed in self.seeds
        ]

    def start(self, target: Target) -> tuple[str, ...]:
        """See `AgentGroup`."""
        shared = ray.put(target)
        messages = ray.get([actor.start.remote(shared) for actor in self._actors])
        return tuple(dict.fromkeys(text for texts in messages for text in texts))

    def run_round(
        self,
        until_step: int,
        consensus: Float[Tensor, "batch channel height width"] | None,
        orders: Int[Tensor, "seed batch"],
    ) -> list[Candidate]:
        """See `AgentGroup`."""
        shared = None if consensus is None else ray.put(consensus.numpy())
        calls = [
            actor.run_round.remote(until_step, shared, order.numpy())
            for actor, order in zip(self._actors, orders, strict=True)
        ]
        return [unpack(packed) for packed in ray.get(calls)]

    def begin(self, period: int) -> None:
        """See `AgentGroup`."""
        self._all("begin", period)

    def latest(self) -> list[Candidate]:
        """See `AgentGroup`."""
        return [unpack(packed) for packed in self._all("latest")]

    def broadcast(
        self, consensus: Float[Tensor, "batch channel height width"], orders: Int[Tensor, "seed batch"]
    ) -> None:
        """See `AgentGroup`."""
        shared = ray.put(consensus.numpy())
        ray.get(
            [
                actor.set_consensus.remote(shared, order.numpy())
                for actor, order in zip(self._actors, orders, strict=True)
            ]
        )

    def save(self, folder: Path) -> dict[str, str]:
        """See `AgentGroup`."""
        return dict(self._all("save", str(folder)))

    def restore(self, folder: Path) -> None:
        """See `AgentGroup`."""
        self._all("restore", str(folder))

    def steps(self) -> Sequence[int]:
        """See `AgentGroup`."""
        return tuple(self._all("step"))

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        return list(ray.get([getattr(actor, method).remote(*arguments) for actor in self._actors]))

"""Hundreds of agents in a few processes: each answers orders at once, with images of the asked size.

The coordinator, its group and its storage are the real ones; only whoever is behind an actor's handle is not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from gradinversion.agents import Account, Outcome
from gradinversion.cluster.agent_loop import Reply
from gradinversion.cluster.candidates import Parts
from gradinversion.cluster.member import Member, Presence
from gradinversion.cluster.ray_group import RayGroup
from gradinversion.cluster.registering import register_part
from gradinversion.cluster.resources import Allotment
from gradinversion.coordinator import AttackConfig, Order, StateFile, Storage, parts_by_label, state_name
from gradinversion.registration import Consensus, RegistrationConfig
from gradinversion.target import Target
from torch import Tensor

_HOSTS = 2


class AgentHost:
    """Many agents in one process; the methods are those of `AgentProcess`, behind the agent's seed."""

    def __init__(self, shape: tuple[int, ...], iterations: int) -> None:
        torch.set_num_threads(1)
        self._images = np.random.default_rng(0).random(shape, dtype=np.float32)
        self._iterations = iterations

    def ready(self, seed: int) -> Presence:
        """There is a process."""
        return Presence(f"simulated{seed}", ray.get_runtime_context().get_node_id())

    def run_round(self, seed: int, order: Order, target: list[Any], parts: list[tuple[int, ...]]) -> tuple[Any, ...]:
        """Done at once."""
        leg = order.current
        losses = {"gradient": 0.5, "total": 0.5}
        outcome = Outcome.FINISHED if leg.until_step >= self._iterations else Outcome.RUNNING
        trace = ({"step": float(leg.until_step), **losses},)
        account = Account(seed, 0, leg.until_step, losses, outcome, seconds=20.0, trace=trace)
        return Reply(leg.round, account, None), *(self._images[list(part)] for part in parts)

    def saved(self, seed: int, round: int) -> StateFile:
        """A state that nobody wrote."""
        return StateFile(state_name(round, seed, "simulated"), "0" * 64, 1)

    def step(self, seed: int) -> int:
        """Where the agent is."""
        return 0

    def register(self, seed: int, *arguments: Any) -> Any:
        """A part of the consensus, on the processor."""
        return register_part("cpu", *arguments)


_HOST_OPTIONS: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 4}
_Host: Any = ray.remote(**_HOST_OPTIONS)(AgentHost)


@dataclass(frozen=True)
class _Method:
    """A method of an actor's handle, for one of the agents behind it."""

    method: Any
    seed: int

    def options(self, **options: Any) -> _Method:
        return _Method(self.method.options(**options), self.seed)

    def remote(self, *arguments: Any) -> Any:
        return self.method.remote(self.seed, *arguments)


@dataclass(frozen=True)
class _Handle:
    """What stands for an agent's own actor."""

    host: Any
    seed: int

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self.host, name), self.seed)


@dataclass
class Costs:
    """Of the rounds so far, in the coordinator's process."""

    rounds: list[float] = field(default_factory=list)
    """Unix times at which they began."""
    processor: list[float] = field(default_factory=list)
    """Processor seconds used until then."""
    consensus: list[float] = field(default_factory=list)
    """Wall seconds of forming each consensus."""
    received: list[int] = field(default_factory=list)
    """Bytes of images that came here for it."""


class SimulatedGroup(RayGroup):
    """The real group over simulated agents.

    Args:
        config: The attack.
        storage: For the checkpoints' manifests.
        parts: In how many parts the batch is registered; 1 registers it whole in this process.
        shape: Of a batch.
    """

    def __init__(self, config: AttackConfig, storage: Storage, parts: int, shape: tuple[int, ...]) -> None:
        super().__init__(config, Allotment(0.0, 0.0, 1), "simulated", False, storage)
        self._wished_parts = parts
        self._hosts = [_Host.remote(shape, config.agents.iterations) for _ in range(_HOSTS)]
        self.costs = Costs()

    def _split(self, target: Target) -> Parts:
        return parts_by_label(target.labels, self._wished_parts)

    def _make(self, member: Member) -> Any:
        return _Handle(self._hosts[member.position % _HOSTS], member.seed)

    def run_round(self, *arguments: Any) -> Any:
        """See `AgentGroup`."""
        self.costs.rounds.append(time.time())
        self.costs.processor.append(time.process_time())
        return super().run_round(*arguments)

    def form_consensus(
        self, positions: Sequence[int], labels: Tensor, round: int, config: RegistrationConfig
    ) -> tuple[Consensus, Tensor]:
        """See `AgentGroup`."""
        began = time.perf_counter()
        consensus, permutations = super().form_consensus(positions, labels, round, config)
        self.costs.consensus.append(time.perf_counter() - began)
        whole = len(self._parts) == 1
        self.costs.received.append(consensus.images.nbytes * (len(positions) if whole else 1))
        return consensus, permutations

    def close(self) -> None:
        """See `AgentGroup`."""
        for host in self._hosts:
            ray.kill(host)

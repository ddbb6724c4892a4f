"""The coordinator's agents as Ray actors."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from jaxtyping import Float, Int
from ray.exceptions import RayActorError
from torch import Tensor

from ..agents import Candidate, Target
from ..coordinator import AttackConfig
from .agent_actor import AgentActor
from .resources import Share
from .transport import unpack

# One thread computes; the others answer questions about progress.
_ACTOR_THREADS = 4
# Deaths of one agent's process after which the run gives up: something kills it every time.
_REVIVALS = 5


class RayGroup:
    """One actor per seed. Rounds cost one call per agent; the consensus is put into the object store once.

    An agent whose process dies is started again from its last saved round and makes the lost round again, so that
    in ``sync`` mode nothing but time is lost.

    Args:
        config: The attack.
        share: Resources of each agent.
    """

    def __init__(self, config: AttackConfig, share: Share) -> None:
        self.seeds = tuple(config.seed + index for index in range(config.agents.count))
        self._config, self._share = config, share
        self._actors = [self._new_actor(seed) for seed in self.seeds]
        self._deaths = [0] * len(self.seeds)
        self._notes: list[list[str]] = [[] for _ in self.seeds]
        self._steps = [0] * len(self.seeds)
        self._target: Any = None
        self._saved: Path | None = None
        self._round: tuple[int, Any, list[Any]] | None = None
        self._period: int | None = None
        self._consensus: tuple[Any, list[Any]] | None = None
        self._reviving = threading.Lock()

    def _new_actor(self, seed: int) -> Any:
        options = {"num_cpus": self._share.cpus, "num_gpus": self._share.gpus, "max_concurrency": _ACTOR_THREADS}
        config = self._config
        return AgentActor.options(**options).remote(seed, config.objective, config.agents, self._share.threads)

    def start(self, target: Target) -> tuple[str, ...]:
        """See `AgentGroup`."""
        self._target = ray.put(target)
        return tuple(dict.fromkeys(text for texts in self._all("start", self._target) for text in texts))

    def run_round(
        self,
        until_step: int,
        consensus: Float[Tensor, "batch channel height width"] | None,
        orders: Int[Tensor, "seed batch"],
    ) -> list[Candidate]:
        """See `AgentGroup`."""
        shared = None if consensus is None else ray.put(consensus.numpy())
        self._round = (until_step, shared, [order.numpy() for order in orders])
        calls = [self._begin_round(index) for index in range(len(self._actors))]
        return [self._end_round(index, call) for index, call in enumerate(calls)]

    def _begin_round(self, index: int) -> Any:
        assert self._round is not None
        until_step, shared, orders = self._round
        return self._actors[index].run_round.remote(until_step, shared, orders[index])

    def _end_round(self, index: int, call: Any) -> Candidate:
        while True:
            actor = self._actors[index]
            try:
                return self._annotated(index, unpack(ray.get(call)))
            except RayActorError as error:
                self._revive(index, actor, error)
                call = self._begin_round(index)

    def begin(self, period: int) -> None:
        """See `AgentGroup`."""
        self._all("begin", period)
        self._period = period

    def latest(self) -> list[Candidate]:
        """See `AgentGroup`."""
        return [self._annotated(index, unpack(packed)) for index, packed in enumerate(self._all("latest"))]

    def broadcast(
        self, consensus: Float[Tensor, "batch channel height width"], orders: Int[Tensor, "seed batch"]
    ) -> None:
        """See `AgentGroup`."""
        self._consensus = (ray.put(consensus.numpy()), [order.numpy() for order in orders])
        for index in range(len(self._actors)):
            self._call(index, "set_consensus", self._consensus[0], self._consensus[1][index])

    def save(self, folder: Path) -> dict[str, str]:
        """See `AgentGroup`."""
        files = dict(self._all("save", str(folder)))
        self._saved = folder
        return files

    def restore(self, folder: Path) -> None:
        """See `AgentGroup`."""
        self._saved = folder
        self._all("restore", str(folder))

    def steps(self) -> Sequence[int]:
        """See `AgentGroup`."""
        for index, actor in enumerate(self._actors):
            try:
                self._steps[index] = ray.get(actor.step.remote())
            except RayActorError as error:
                # In sync mode the round itself finds the agent dead; here nobody else waits for it.
                if self._period is not None:
                    self._revive(index, actor, error)
        return tuple(self._steps)

    def _annotated(self, index: int, candidate: Candidate) -> Candidate:
        notes, self._notes[index] = self._notes[index], []
        return replace(candidate, messages=(*notes, *candidate.messages))

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        calls = [getattr(actor, method).remote(*arguments) for actor in self._actors]
        found = []
        for index, call in enumerate(calls):
            actor = self._actors[index]
            try:
                found.append(ray.get(call))
            except RayActorError as error:
                self._revive(index, actor, error, again=method == "save")
                found.append(self._call(index, method, *arguments))
        return found

    def _call(self, index: int, method: str, *arguments: Any) -> Any:
        while True:
            actor = self._actors[index]
            try:
                return ray.get(getattr(actor, method).remote(*arguments))
            except RayActorError as error:
                self._revive(index, actor, error, again=method == "save")

    def _revive(self, index: int, dead: Any, error: RayActorError, again: bool = False) -> None:
        """Put a new actor in the place of a dead one, from the last saved round.

        Args:
            index: Which agent.
            dead: The actor that was found dead; nothing happens where it was replaced already.
            error: What Ray said of it; raised again when the agent died too often.
            again: Make the current round again too, because its state is wanted now.
        """
        with self._reviving:
            if self._actors[index] is not dead:
                return
            self._deaths[index] += 1
            if self._deaths[index] > _REVIVALS:
                raise error
            actor = self._new_actor(self.seeds[index])
            if self._target is not None:
                ray.get(actor.start.remote(self._target))
            where = "from its first step"
            if self._saved is not None:
                ray.get(actor.restore.remote(str(self._saved)))
                where = "from its last saved round"
            self._actors[index] = actor
            self._notes[index].append(f"The process of seed {self.seeds[index]} died; it was started again {where}.")
            if self._period is not None:
                if self._consensus is not None:
                    ray.get(actor.set_consensus.remote(self._consensus[0], self._consensus[1][index]))
                ray.get(actor.begin.remote(self._period))
            elif again and self._round is not None:
                ray.get(self._begin_round(index))

"""One agent as a Ray actor: a process of its own, pinned to its GPU or its share of the CPUs."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch

from ..agents import Account, Agent, AgentsConfig, ObjectiveConfig
from ..coordinator import Order, StateFile, Storage
from ..target import Target
from .agent_loop import AgentLoop, Reply
from .member import Presence
from .state_writer import give_way
from .transport import rows, tensor

# Between two looks whether the first step is made.
_LOOK_SECONDS = 0.2
# How often per period an agent in async mode looks for an order.
_LOOKS_PER_PERIOD = 4


@dataclass(frozen=True)
class AgentSpec:
    """What an agent's process is made with. Small: Ray keeps it to make the process again."""

    seed: int
    objective: ObjectiveConfig
    config: AgentsConfig
    threads: int
    storage: Storage | None
    period: int | None
    """``async``: of the rounds; None in ``sync`` mode."""


class AgentProcess:
    """What runs inside the actor: the loop in a thread of its own, and answers about it."""

    def __init__(self, spec: AgentSpec) -> None:
        self._spec = spec
        self._device = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        chunk = None if spec.period is None else max(1, spec.period // _LOOKS_PER_PERIOD)
        self._loop = AgentLoop(spec.seed, self._make, _fetch, spec.storage, chunk, spec.threads)
        # Always the same one, which has its memory already: a fresh batch of pages costs more than the work on it.
        self._registration = ThreadPoolExecutor(1, "registration", torch.set_num_threads, (spec.threads,))
        self._is_warm = spec.period is not None  # in async mode agents do not register

    def _make(self, target: Target) -> Agent:
        return Agent(target, self._spec.objective, self._spec.config, self._spec.seed, self._device)

    def ready(self) -> Presence:
        """Answered as soon as there is a process."""
        return Presence(self._loop.token, ray.get_runtime_context().get_node_id())

    def run_round(self, order: Order, target: list[Any], parts: list[tuple[int, ...]]) -> tuple[Any, ...]:
        """Carry out an order; the reply without its images, then the images of each part of the batch.

        Args:
            order: See `AgentLoop`.
            target: A list of the reference to the `Target`, which is fetched only by a process that needs it.
            parts: Places of the batch that travel together.
        """
        if len(parts) > 1 and not self._is_warm:
            self._is_warm = True
            threading.Thread(target=self._warm_up, daemon=True, name="warm up").start()
        reply: Reply = self._loop.submit(order, target[0]).result()
        images = reply.images
        assert images is not None
        return replace(reply, images=None), *(rows(images, part).numpy() for part in parts)

    def _warm_up(self) -> None:
        """Have what `register` imports ready before the first round ends, but not before the first step is made."""
        give_way()
        began = self._loop.step
        while self._loop.step == began:
            time.sleep(_LOOK_SECONDS)
        from .registering import warm_up

        self._registration.submit(warm_up, self._device)

    def saved(self, round: int) -> StateFile:
        """The file with the state of a round, once it is written."""
        return self._loop.saved(round)

    def save_within(self, round: int, part: int) -> tuple[StateFile, Account]:
        """The file with the state in the middle of a round, once it is written; see `AgentLoop`."""
        return self._loop.save_within(round, part)

    def leave(self) -> None:
        """Save the state and answer the order with it: the node will be taken away."""
        self._loop.leave()

    def step(self) -> int:
        """Where the agent is."""
        return self._loop.step

    def register(self, *arguments: Any) -> Any:
        """Form a part of the consensus on this agent's device, which has nothing else to do between two rounds."""
        from .registering import register_part

        return self._registration.submit(register_part, self._device, *arguments).result()


def _fetch(shared: Any) -> Any:
    """What a reference stands for; images as a tensor that may be written to."""
    found = ray.get(shared)
    return found if isinstance(found, Target) else tensor(found)


# Ray adds .remote and .options at run time, which its types only tell for decorated classes.
AgentActor: Any = ray.remote(AgentProcess)

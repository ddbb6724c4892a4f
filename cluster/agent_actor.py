"""One agent as a Ray actor: a process of its own, pinned to its GPU or its share of the CPUs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from ..agents import Agent, AgentsConfig, Candidate, ObjectiveConfig, Target
from ..coordinator import read_tensors, write_tensors
from .transport import pack, tensor

# How often per period an agent in async mode looks for a new consensus and shows its candidate.
_LOOKS_PER_PERIOD = 4


class AgentProcess:
    """What runs inside the actor. Rounds hold a lock, so that a state is never saved in the middle of a step."""

    def __init__(self, seed: int, objective: ObjectiveConfig, config: AgentsConfig, threads: int) -> None:
        self._seed, self._objective, self._config, self._threads = seed, objective, config, threads
        self._agent: Agent | None = None
        self._lock = threading.Lock()
        self._consensus: torch.Tensor | None = None
        self._unseen: list[Candidate] = []
        self._failure: BaseException | None = None

    def start(self, target: Target) -> tuple[str, ...]:
        """Take what is known about the batch; returns the agent's messages."""
        torch.set_num_threads(self._threads)
        device = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        self._agent = Agent(target, self._objective, self._config, self._seed, device)
        return self._agent.messages

    @property
    def _running(self) -> Agent:
        if self._agent is None:
            raise RuntimeError("start the agent before it runs.")
        return self._agent

    def run_round(
        self, until_step: int, consensus: np.ndarray[Any, Any] | None, order: np.ndarray[Any, Any]
    ) -> tuple[np.ndarray[Any, Any], Candidate]:
        """One round of ``sync`` mode."""
        with self._lock:
            # The number of threads belongs to the thread that computes, and an actor's methods may run in any.
            torch.set_num_threads(self._threads)
            images = tensor(consensus)
            return pack(
                self._running.run(until_step, None if images is None else images[torch.from_numpy(order.copy())])
            )

    def begin(self, period: int) -> None:
        """Descend to the last step in a thread of its own (``async``)."""
        threading.Thread(target=self._descend, args=(max(1, period // _LOOKS_PER_PERIOD),), daemon=True).start()

    def _descend(self, chunk: int) -> None:
        torch.set_num_threads(self._threads)
        agent = self._running
        try:
            while agent.step < self._config.iterations:
                with self._lock:
                    until = min(agent.step + chunk, self._config.iterations)
                    self._unseen.append(agent.run(until, self._consensus))
        except BaseException as error:
            self._failure = error
            raise

    def latest(self) -> tuple[np.ndarray[Any, Any], Candidate]:
        """The newest candidate, with the losses and messages of all chunks since the last call."""
        if self._failure is not None:
            raise RuntimeError(f"seed {self._seed} stopped: {self._failure}")
        seen, self._unseen = self._unseen, []
        newest = seen[-1] if seen else self._running.candidate()
        traces = tuple(row for candidate in seen for row in candidate.trace)
        messages = tuple(text for candidate in seen for text in candidate.messages)
        images, rest = pack(newest)
        merged = {"trace": traces, "messages": messages, "seconds": sum(c.seconds for c in seen)}
        return images, Candidate(**{**vars(rest), **merged})

    def set_consensus(self, consensus: np.ndarray[Any, Any], order: np.ndarray[Any, Any]) -> None:
        """The consensus for the next chunk (``async``)."""
        images = tensor(consensus)
        assert images is not None
        self._consensus = images[torch.from_numpy(order.copy())]

    def save(self, folder: str) -> tuple[str, str]:
        """Write the state into a folder; returns the file's name and SHA-256."""
        name = f"seed-{self._seed}.safetensors"
        with self._lock:
            return name, write_tensors(Path(folder) / name, self._running.state())

    def restore(self, folder: str) -> None:
        """Continue from the state in a folder."""
        with self._lock:
            self._running.restore(read_tensors(Path(folder) / f"seed-{self._seed}.safetensors"))

    def step(self) -> int:
        """Where the agent is."""
        return 0 if self._agent is None else self._agent.step


# Ray adds .remote and .options at run time, which its types only tell for decorated classes.
AgentActor: Any = ray.remote(AgentProcess)

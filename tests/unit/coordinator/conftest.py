"""A group of agents in this process, and a small attack for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from gradinversion.agents import Agent, AgentsConfig, Candidate, Target
from gradinversion.capture import CapturedUpdate, capture_gradient
from gradinversion.coordinator import AttackConfig, CoordinatorConfig, read_tensors, write_tensors
from torch import Tensor, nn


class SerialGroup:
    """Runs its agents one after the other; ``rounds`` records what the coordinator asked for."""

    def __init__(self, config: AttackConfig) -> None:
        self.config = config
        self.seeds = tuple(config.seed + index for index in range(config.agents.count))
        self.agents: list[Agent] = []
        self.rounds: list[tuple[int, Tensor | None, Tensor]] = []

    def start(self, target: Target) -> tuple[str, ...]:
        self.agents = [Agent(target, self.config.objective, self.config.agents, seed) for seed in self.seeds]
        return ("started",)

    def run_round(self, until_step: int, consensus: Tensor | None, orders: Tensor) -> list[Candidate]:
        self.rounds.append((until_step, consensus, orders))
        own = [None if consensus is None else consensus[order] for order in orders]
        return [agent.run(until_step, images) for agent, images in zip(self.agents, own, strict=True)]

    def begin(self, period: int) -> None:
        raise NotImplementedError("this group has no async mode")

    def latest(self) -> list[Candidate]:
        return [agent.candidate() for agent in self.agents]

    def broadcast(self, consensus: Tensor, orders: Tensor) -> None:
        raise NotImplementedError("this group has no async mode")

    def save(self, folder: Path) -> dict[str, str]:
        names = [f"seed-{seed}.safetensors" for seed in self.seeds]
        return {
            name: write_tensors(folder / name, agent.state()) for name, agent in zip(names, self.agents, strict=True)
        }

    def restore(self, folder: Path) -> None:
        for seed, agent in zip(self.seeds, self.agents, strict=True):
            agent.restore(read_tensors(folder / f"seed-{seed}.safetensors"))

    def steps(self) -> Sequence[int]:
        return [agent.step for agent in self.agents]


@pytest.fixture
def serial() -> type[SerialGroup]:
    return SerialGroup


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4)
        ).eval()


@pytest.fixture
def update(model: nn.Module) -> CapturedUpdate:
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return capture_gradient(model, images, torch.tensor([0, 1, 3]), normalisation=((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))


@pytest.fixture
def config() -> AttackConfig:
    return AttackConfig(
        labels="0,1,3",
        agents=AgentsConfig(count=3, iterations=40, warmup=4),
        coordinator=CoordinatorConfig(period=10, start=0.5),
    )

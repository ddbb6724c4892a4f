"""A coordinator over agents in this process, one after the other: the answers of the real run, without Ray.

In `sync` mode agents wait for each other, so that it makes no difference to the numbers who runs them where. Processor
time of the process is then that of the whole attack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..agents import Account, Agent, Candidate
from ..capture import CapturedUpdate
from ..registration import Consensus, RegistrationConfig
from ..target import Target
from . import AttackConfig, Coordinator, Listener, Order, Reconstruction, form_consensus


class SerialGroup:
    """Implements `AgentGroup` for a run that is not saved and loses nobody.

    Args:
        config: The attack, in `sync` mode.
    """

    def __init__(self, config: AttackConfig) -> None:
        self.seeds = tuple(config.seed + index for index in range(config.agents.count))
        self.peeled = False
        self._config = config
        self._agents: list[Agent] = []
        self._accounts: dict[int, Account] = {}

    def open(self, target: Target, listener: Listener) -> None:
        """See `AgentGroup`."""
        self.peeled = target.anchor is not None or target.cut is not None
        self._agents = [Agent(target, self._config.objective, self._config.agents, seed) for seed in self.seeds]

    def present(self) -> frozenset[int]:
        """See `AgentGroup`."""
        return frozenset(range(len(self.seeds)))

    def room(self) -> int:
        """See `AgentGroup`."""
        return len(self.seeds)

    def put(self, images: Tensor) -> Tensor:
        """See `AgentGroup`."""
        return images

    def run_round(
        self, orders: Mapping[int, Order], enough: Callable[[int, int], bool], give_up: Callable[[float, int], bool]
    ) -> tuple[dict[int, Account], frozenset[int]]:
        """See `AgentGroup`."""
        found = {position: self._run(position, orders[position]) for position in sorted(orders)}
        self._accounts |= found
        return found, frozenset()

    def _run(self, position: int, order: Order) -> Account:
        leg = order.current
        consensus = None if leg.consensus is None else leg.consensus[list(leg.permutation)]
        return self._agents[position].run(leg.until_step, consensus)

    def renew(self, position: int, order: Order) -> None:
        """Nobody is lost on the way."""

    def form_consensus(
        self, positions: Sequence[int], labels: Tensor, round: int, config: RegistrationConfig
    ) -> tuple[Consensus, Tensor]:
        """See `AgentGroup`."""
        images = torch.stack([candidate.images for candidate in self.fetch(positions)])
        return form_consensus(images, [self.seeds[position] for position in positions], labels, round, config)

    def fetch(self, positions: Sequence[int]) -> list[Candidate]:
        """See `AgentGroup`."""
        return [self._accounts[position].with_images(self._agents[position].images) for position in positions]

    def await_writes(self, seconds: float) -> None:
        """Nothing was saved."""

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Attacked:
    """What came of an attack."""

    reconstruction: Reconstruction
    peeled: bool
    """Whether layer peeling changed anything."""


def attack(update: CapturedUpdate, model: nn.Module, config: AttackConfig) -> Attacked:
    """The whole attack, from the update on: labels, peeling, steps, registration, choice; see `Coordinator.run`."""
    group = SerialGroup(config)
    reconstruction = Coordinator(update, model, config, group).run()
    return Attacked(reconstruction, group.peeled)

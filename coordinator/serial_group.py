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
from ..refusal import ConfigError
from ..registration import Consensus, RegistrationConfig
from ..target import Target
from . import AttackConfig, Coordinator, Listener, Mode, Order, Part, Reconstruction, Status, form_consensus


class SerialGroup:
    """Implements `AgentGroup` for a run that is not saved and loses nobody.

    Args:
        config: The attack, in `sync` mode.
        after_each: Called whenever an agent has ended a round.
    """

    def __init__(self, config: AttackConfig, after_each: Callable[[], None] = lambda: None) -> None:
        self.seeds = tuple(config.seed + index for index in range(config.agents.count))
        self.peeled = False
        self._config, self._after_each = config, after_each
        self._agents: list[Agent] = []
        self._listener: Listener | None = None
        self._accounts: dict[int, Account] = {}

    def place(self, listener: Listener) -> None:
        """See `AgentGroup`."""
        self._listener = listener

    def open(self, target: Target) -> None:
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
        account = self._agents[position].run(leg.until_step, consensus)
        if self._listener is not None:
            self._listener.idle()
        self._after_each()
        return account

    def renew(self, position: int, order: Order) -> None:
        """Nobody is lost on the way."""

    def save_within(self, part: Part) -> None:
        """Nothing is saved."""

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


def attack(
    update: CapturedUpdate, model: nn.Module, config: AttackConfig, watch: Callable[[Status], None] | None = None
) -> Attacked:
    """The whole attack, from the update on: labels, peeling, steps, registration, choice; see `Coordinator.run`.

    Args:
        update: What the server holds.
        model: The server's model.
        config: The attack.
        watch: Called with the state of the run whenever an agent has ended a round.

    Raises:
        ConfigError: `async` mode, in which agents run beside each other.
    """
    if config.coordinator.mode is not Mode.SYNC:
        raise ConfigError(["coordinator.mode=async: agents of one process run one after the other; give sync."])
    group = SerialGroup(config, after_each=lambda: None if watch is None else watch(coordinator.status))
    coordinator = Coordinator(update, model, config, group)
    reconstruction = coordinator.run()
    return Attacked(reconstruction, group.peeled)

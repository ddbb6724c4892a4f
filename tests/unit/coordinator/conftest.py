"""A group of agents in this process, and a small attack for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import Account, Agent, AgentsConfig, Candidate
from gradinversion.capture import CapturedUpdate, capture_gradient
from gradinversion.coordinator import (
    AttackConfig,
    Coordinator,
    CoordinatorConfig,
    Listener,
    Order,
    Part,
    Reconstruction,
    StateFile,
    Storage,
    StorageError,
    form_consensus,
    read_tensors,
    state_name,
    write_state,
)
from gradinversion.registration import Consensus, RegistrationConfig
from gradinversion.target import Target
from torch import Tensor, nn


class SerialGroup:
    """Runs its agents one after the other; ``rounds`` records what the coordinator asked for.

    ``here`` are the positions that have a process; a test takes some away, or brings them back, between two rounds.
    """

    def __init__(self, config: AttackConfig, storage: Storage | None = None) -> None:
        self.config = config
        self.seeds = tuple(config.seed + index for index in range(config.agents.count))
        self.here = set(range(len(self.seeds)))
        self.agents: dict[int, Agent] = {}
        self.accounts: dict[int, Account] = {}
        self.rounds: list[dict[int, Order]] = []
        self.storage = storage
        self.closed = False
        self.parts: list[Part] = []
        self._stints: dict[int, tuple[int, int]] = {}
        self.pauses: set[int] = set()
        """Steps after which an agent stands still, and the coordinator is asked whether it wants anything."""
        self.within: dict[int, Account] = {}
        """What happened to each seed since its round began."""

    def place(self, listener: Listener) -> None:
        self.listener = listener

    def open(self, target: Target) -> None:
        self.target = target

    def present(self) -> frozenset[int]:
        return frozenset(self.here)

    def room(self) -> int:
        return len(self.here)

    def put(self, images: Tensor) -> Tensor:
        return images.clone()

    def run_round(
        self,
        orders: Mapping[int, Order],
        enough: Callable[[int, int], bool],
        give_up: Callable[[float, int], bool],
    ) -> tuple[dict[int, Account], frozenset[int]]:
        self.rounds.append(dict(orders))
        self.within = {}
        gone = frozenset(position for position in orders if position not in self.here and give_up(float("inf"), 1))
        for position in sorted(orders.keys() - gone):
            if self._stints.get(position) != orders[position].origin.stint:
                self.begin(position, orders[position])
        found = {position: self.run(position, orders[position]) for position in sorted(orders.keys() - gone)}
        self.accounts |= found
        self.listener.idle()
        return found, gone

    def run(self, position: int, order: Order) -> Account:
        agent = self.agents[position]
        found: list[Account] = []
        for leg in order.legs:
            consensus = None if leg.consensus is None else leg.consensus[list(leg.permutation)]
            for pause in sorted(self.pauses | {leg.until_step}):
                if agent.step < pause <= leg.until_step:
                    account = agent.run(leg.until_step, consensus, lambda pause=pause: agent.step >= pause)  # type: ignore[misc]
                    found = [account.after(found[-1]) if found else account]
                    self.within[position] = found[-1]
                    if pause < leg.until_step:
                        self.listener.idle()
        if order.save is not None:
            self.listener.saved(order.save, position, self.save(position, order.save))
        return found[-1] if found else agent.account()

    def begin(self, position: int, order: Order) -> None:
        config, origin = self.config, order.origin
        agent = self.agents[position] = Agent(self.target, config.objective, config.agents, self.seeds[position])
        if origin.state is not None:
            assert self.storage is not None
            agent.restore(read_tensors(self.storage, origin.state))
        else:
            agent.join(origin.step, origin.start)
        self._stints[position] = origin.stint

    def save(self, position: int, index: int) -> StateFile | str:
        agent, seed = self.agents[position], self.seeds[position]
        assert self.storage is not None
        try:
            return write_state(self.storage, state_name(index, seed, "test"), agent.state(), agent.step)
        except StorageError as error:
            return str(error)

    def save_within(self, part: Part) -> None:
        for position in part.positions:
            agent, seed = self.agents[position], self.seeds[position]
            assert self.storage is not None
            name = state_name(part.round, seed, "test", part.number)
            state = write_state(self.storage, name, agent.state(), agent.step)
            account = self.within.get(position, agent.account())
            self.listener.saved_within(part, position, (state, account))
        self.parts.append(part)

    def form_consensus(
        self, positions: Sequence[int], labels: Tensor, round: int, config: RegistrationConfig
    ) -> tuple[Consensus, Tensor]:
        images = torch.stack([candidate.images for candidate in self.fetch(positions)])
        return form_consensus(images, [self.seeds[position] for position in positions], labels, round, config)

    def fetch(self, positions: Sequence[int]) -> list[Candidate]:
        return [self.accounts[position].with_images(self.agents[position].images) for position in positions]

    def await_writes(self, seconds: float) -> None:
        # States were told as soon as they were written: what is missing now will never come. (A whole round may still
        # wait for the one before it.)
        saving = self.listener._saving  # type: ignore[attr-defined]
        assert all(round.complete for round in saving._rounds), "the coordinator waits for ever"
        if saving._written is not None:
            wait([saving._written[1]])

    def renew(self, position: int, order: Order) -> None:
        pass  # nobody is lost on the way

    def close(self) -> None:
        self.closed = True


class Run:
    """A coordinator over a serial group; ``before[n]`` happens before round n, and ``rounds`` says who made which."""

    def __init__(
        self,
        serial: Any,
        update: CapturedUpdate,
        model: nn.Module,
        config: AttackConfig,
        out: Path | None = None,
        before: dict[int, Callable[[], object]] | None = None,
        **more: Any,
    ) -> None:
        storage = Storage(out) if out is not None else None
        self.group = serial(config, storage)
        self.coordinator = Coordinator(update, model, config, self.group, storage, **more)
        self.before = before or {}
        run_round, present = self.group.run_round, self.group.present

        def watched(*arguments: Any) -> Any:
            self.before.pop(len(self.group.rounds), lambda: None)()
            return run_round(*arguments)

        def settled() -> Any:
            # A round is saved before the next one begins: which rounds have a checkpoint is no chance.
            self.group.await_writes(0.0)
            self.coordinator.idle()
            return present()

        self.group.run_round, self.group.present = watched, settled

    def __call__(self) -> Reconstruction:
        return self.coordinator.run()

    @property
    def members(self) -> list[list[int]]:
        """Positions in each round."""
        return [sorted(orders) for orders in self.group.rounds]

    def saved_seeds(self) -> set[int]:
        """Seeds in the newest checkpoint."""
        assert self.coordinator._store is not None
        checkpoint, messages = self.coordinator._store.latest()
        assert checkpoint is not None
        assert messages == ()
        return set(checkpoint.states)

    def at_presence(self, change: Callable[[int], object]) -> None:
        """Have something happen whenever the coordinator looks who is there, counted from 0."""
        present, looks = self.group.present, list[None]()

        def looked() -> frozenset[int]:
            change(len(looks))
            looks.append(None)
            found: frozenset[int] = present()
            return found

        self.group.present = looked


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


@pytest.fixture(autouse=True)
def _nobody_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradinversion.coordinator.coordinator._POLL_SECONDS", 0.0)


@pytest.fixture
def run(serial: Any, update: CapturedUpdate, model: nn.Module, config: AttackConfig) -> Callable[..., Run]:
    return lambda config=config, **more: Run(serial, update, model, config, **more)

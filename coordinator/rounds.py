"""One round after the other: orders to the seeds, accounts back, and the consensus they form."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..agents import Outcome
from ..refusal import Refusal
from ..registration import Consensus
from ..storage.tensor_file import StateFile
from .config import AttackConfig, Mode
from .group import AgentGroup, CandidatesLostError
from .orders import Itinerary, Leg
from .permutations import invert
from .policy import Round, enough_done, fresh, give_up, usable
from .progress import Progress
from .saving import Saving


class AllSeedsFailedError(Refusal, RuntimeError):
    """Every seed diverged more often than its restarts allow."""


class Rounds:
    """Has the seeds that take part make their rounds, and brings their candidates together.

    Args:
        group: The agents.
        config: The attack.
        labels: Of the batch.
        progress: Grows with each round.
        saving: Of the checkpoints.
        itinerary: Of the seeds that take part.
        stopping: Set when the run is to end.
    """

    def __init__(
        self,
        group: AgentGroup,
        config: AttackConfig,
        labels: Int[Tensor, " batch"],
        progress: Progress,
        saving: Saving,
        itinerary: Itinerary,
        stopping: threading.Event,
    ) -> None:
        self._group, self._config, self._labels = group, config, labels
        self._progress, self._saving, self._itinerary, self._stop = progress, saving, itinerary, stopping
        self._shared: tuple[Tensor, Any] | None = None

    def make(self, current: Round, last: bool) -> None:
        """One round of every seed that takes part; those that were lost for good leave.

        Args:
            current: The round.
            last: Whether it is the last one, for which all seeds are waited for.

        Raises:
            AllSeedsFailedError: No seed is left.
        """
        members = self._itinerary.members
        save = self._saving.free
        if save:
            self._saving.begin(current.index, members)
        leg = self._legs(current)
        orders = {
            position: self._itinerary.order(position, leg(position), current.index if save else None)
            for position in members
        }
        waits = self._config.coordinator.mode is Mode.SYNC
        enough = partial(enough_done, last_round=last, waits_for_all=waits)
        steps = (current.from_step, current.until_step) if waits else None
        self._saving.enter(current.index, members, self._progress, steps)
        accounts, gone = self._group.run_round(orders, enough, self._give_up)
        self._saving.leave()
        self._leave(gone)
        for account in accounts.values():
            self._progress.record(current.index, account)
        self._progress.accounts = dict(sorted(accounts.items()))
        self.usable()

    def usable(self, only_fresh: bool = False) -> list[int]:
        """Positions of the seeds whose candidates count.

        Raises:
            AllSeedsFailedError: None does.
        """
        positions, accounts = list(self._progress.accounts), list(self._progress.accounts.values())
        if not accounts:
            raise AllSeedsFailedError(
                "Every agent was lost with its candidate; resume=true continues from the last checkpoint."
            )
        if not usable(accounts):
            raise AllSeedsFailedError(
                f"{Outcome.ALL_SEEDS_FAILED.value}; lower agents.learning_rate or change the loss."
            )
        chosen = fresh(accounts, self._config.coordinator) if only_fresh else usable(accounts)
        return [positions[index] for index in chosen]

    def _legs(self, current: Round) -> Callable[[int], Leg]:
        """Each position's leg of a round."""
        consensus = self._progress.consensus
        shared = self._put(consensus.images) if consensus is not None else None
        own = invert(self.permutations).tolist()
        return lambda position: Leg(
            current.index, current.until_step, shared, tuple(own[position]) if consensus is not None else ()
        )

    def again(self, positions: Iterable[int], save: int | None = None) -> None:
        """Have the last round made again: by seeds whose candidates were lost, or to save it."""
        members = [position for position in positions if position in self._itinerary.members]
        orders = {position: self._itinerary.again(position, save) for position in members}
        enough = partial(enough_done, last_round=True, waits_for_all=True)
        found, gone = self._group.run_round(orders, enough, self._give_up)
        self._leave(gone)
        self._progress.accounts |= found

    def save_last(self, ended: bool, finish: Callable[[], None]) -> None:
        """Bring the last round into the storage too.

        Args:
            ended: Whether it was the last one of the run.
            finish: Waits until all that is on its way is written.
        """
        last, members = self._progress.next_round - 1, self._itinerary.members
        if members and self._saving.pending and not ended:
            # Agents hold their states back until the next round begins, and none does: asked again, they write.
            self.again(members)
        finish()
        members = self._itinerary.members
        if members and self._saving.newest < last:
            self._saving.begin(last, members)
            self._saving.add_progress(last, self._progress)
            self.again(members, save=last)
            finish()

    def _give_up(self, lost_seconds: float, others: int) -> bool:
        # Who wants the run to end does not want to wait for a machine first.
        return (self._stop.is_set() and others > 0) or give_up(lost_seconds, others, self._config.agents)

    def _leave(self, positions: Iterable[int]) -> None:
        for position in positions:
            self._itinerary.leave(position)
            self._progress.accounts.pop(position, None)
            self._saving.lost(position)

    @property
    def permutations(self) -> Int[Tensor, "seed batch"]:
        """For each seed, which of its images stands at each place of the consensus."""
        return self._progress.permutations if self._progress.permutations is not None else self._identities()

    def _identities(self) -> Int[Tensor, "seed batch"]:
        return torch.arange(len(self._labels)).repeat(len(self._group.seeds), 1)

    def _put(self, images: Tensor) -> Any:
        # Sent once however many seeds and rounds use it.
        if self._shared is None or self._shared[0] is not images:
            self._shared = (images, self._group.put(images))
        return self._shared[1]

    def form_consensus(self, current: Round) -> None:
        """Bring the candidates of a round together."""
        positions = self.usable(only_fresh=self._config.coordinator.mode is Mode.ASYNC)
        consensus, permutations, positions = self._meet(positions, current.index)
        every = self._identities()
        every[positions] = permutations
        self._progress.agree(consensus, every, current.until_step)

    def _meet(self, positions: list[int], index: int) -> tuple[Consensus, Int[Tensor, "usable batch"], list[int]]:
        """The consensus of these seeds, their permutations, and the seeds that were there after all."""
        while True:
            try:
                consensus, permutations = self._group.form_consensus(
                    positions, self._labels, index, self._config.registration
                )
                return consensus, permutations, positions
            except CandidatesLostError as error:
                self.again(error.positions)
                positions = [position for position in self.usable() if position in positions]

    def admit(self, position: int, step: int, state: StateFile | None) -> bool:
        """Let a seed take part from here on; whether it begins near the others, having no state of its own.

        Args:
            position: Of the seed.
            step: Where the others are.
            state: The seed's own, of the checkpoint that the run continues from.
        """
        progress = self._progress
        if state is not None or step == 0 or not self.meets:
            self._itinerary.enter(position, state.step if state is not None else step, state=state)
            return False
        self._itinerary.enter(position, step, start=self._put(self._meeting_point()))
        if progress.permutations is not None:
            progress.permutations[position] = torch.arange(len(self._labels))
        return True

    @property
    def meets(self) -> bool:
        """Whether there is something that a seed without a state can begin near."""
        return self._progress.consensus is not None or bool(self._progress.accounts)

    def _meeting_point(self) -> Tensor:
        """What a seed that comes late begins near: the consensus, or what it would be now."""
        if self._progress.consensus is not None:
            return self._progress.consensus.images
        consensus, _, _ = self._meet(self.usable(), self._progress.next_round)
        return consensus.images

"""The coordinator: gathers candidates, has them registered into a consensus, gives it back, and saves each round."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..agents import Candidate, Outcome
from ..capture import CapturedUpdate
from .checkpoints import Checkpoint, CheckpointStore
from .config import AttackConfig, Mode
from .finishing import conclude, finalists
from .group import AgentGroup, CandidatesLostError
from .ordering import back_to_own_order
from .orders import Itinerary, Leg
from .policy import Go, Round, decide_members, enough_done, fresh, give_up, plan_rounds, usable
from .preparation import Preparation, identity, prepare
from .progress import Progress
from .reconstruction import Reconstruction
from .result_file import read_result, remove_result, write_result
from .saving import Saving
from .status import Status, seed_statuses
from .storage import Storage, StorageError
from .tensor_file import StateFile

_POLL_SECONDS = 0.05


class AllSeedsFailedError(RuntimeError):
    """Every seed diverged more often than its restarts allow."""


class Coordinator:
    """Runs one attack over a group of agents.

    Args:
        update: What the server holds.
        model: The server's model.
        config: The attack.
        group: The agents, one per seed.
        storage: For ``checkpoints/``, ``metrics.jsonl`` and ``events.jsonl``, or None to keep nothing.
        resume: Continue from the newest checkpoint in the storage.
        notes: What is known before the run and belongs among its messages.
    """

    def __init__(
        self,
        update: CapturedUpdate,
        model: nn.Module,
        config: AttackConfig,
        group: AgentGroup,
        storage: Storage | None = None,
        resume: bool = False,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._update, self._model, self._config, self._group = update, model, config, group
        self._storage = storage
        self._store = CheckpointStore(storage, identity(config, update)) if storage else None
        self._resume = resume
        self._rounds = plan_rounds(config.agents.iterations, config.coordinator)
        self._progress = Progress()
        for text in notes:
            self.note("note", text)
        self._saving = Saving(self._store, storage, group.seeds, self.note)
        self._itinerary = Itinerary(epoch=1)
        self._labels = torch.zeros(0, dtype=torch.long)
        self._shared: tuple[Any, Any] = (None, None)
        self._stop = threading.Event()
        seeds = seed_statuses(group.seeds, self._progress, set(), None)
        self.status = Status(rounds=len(self._rounds), iterations=config.agents.iterations, seeds=seeds)

    def run(self) -> Reconstruction:
        """The whole attack.

        Raises:
            UpdateError, LabelError: The update cannot be attacked.
            CheckpointError: ``resume`` found a checkpoint of another run, or (`FencedError`) another coordinator has
                taken this run over.
            AllSeedsFailedError: No seed is left.
        """
        # A checkpoint of another run is refused before any work is done.
        checkpoint = self._find_checkpoint()
        if checkpoint is not None and self._storage is not None:
            result = read_result(self._storage)
            if result is not None and result.outcome is Outcome.FINISHED:
                return result
        if self._store is not None:
            self._itinerary = Itinerary(self._store.claim())
        self._tell(phase="reading labels and peeling layers")
        prepared = prepare(self._update, self._model, self._config)
        self._labels = prepared.labels.labels
        for text in prepared.messages:
            self.note("note", text)
        if checkpoint is not None:
            self._continue_from(checkpoint)
        self._group.open(prepared.target, self)
        try:
            self._gather(checkpoint)
            self._run_rounds()
            self._tell(phase="choosing images")
            result = self._conclude(prepared)
            self._keep(result)
        finally:
            self._saving.close()
        return result

    def _keep(self, result: Reconstruction) -> None:
        if self._storage is None:
            return
        try:
            write_result(self._storage, result)
        except StorageError as error:
            self.note("checkpoint_failed", f"The result was not saved: {error}", level="error")

    def stop(self) -> None:
        """End at the next round boundary with what there is."""
        self._stop.set()

    # What the group tells.

    def note(self, kind: str, text: str, *, seeds: Iterable[int] = (), level: str = "info", **facts: Any) -> None:
        """Something that a person should know; see `EventLog.note`."""
        self._progress.events.note(kind, text, seeds=seeds, level=level, **facts)
        if kind == "agent_lost":
            for seed in seeds:
                position = self._group.seeds.index(seed)
                self._progress.deaths[position] = self._progress.deaths.get(position, 0) + 1

    def saved(self, round: int, position: int, state: StateFile | str) -> None:
        """A seed's state of a round lies in the storage, or why it does not."""
        self._saving.add_state(round, position, state)

    def idle(self) -> None:
        """While a round runs: complete checkpoints, tell where the run is."""
        for position, state in self._saving.poll().items():
            self._itinerary.moved(position, state)
        self._tell()

    # Rounds.

    def _run_rounds(self) -> None:
        progress = self._progress
        for current in self._rounds[progress.next_round :]:
            if self._stop.is_set() and progress.consensus is not None:
                return
            self._gather()
            self._tell(phase="optimising")
            began = time.perf_counter()
            self._run_round(current)
            if current.forms_consensus:
                self._form_consensus(current)
            progress.next_round = current.index + 1
            seconds = time.perf_counter() - began
            progress.seconds += seconds
            self._saving.add_progress(current.index, progress)
            self._saving.write_curves(progress)
            self._tell(round_seconds=seconds, computing=self._computing(seconds))

    def _run_round(self, current: Round) -> None:
        """One round of every seed that takes part; those that were lost for good leave."""
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
        enough = partial(enough_done, last_round=current.index + 1 == len(self._rounds), waits_for_all=waits)
        candidates, gone = self._group.run_round(orders, enough, partial(give_up, config=self._config.agents))
        for position in gone:
            self._itinerary.leave(position)
        for candidate in candidates.values():
            self._progress.record(current.index, candidate)
        self._progress.candidates = dict(sorted(candidates.items()))
        if not self._usable():
            raise AllSeedsFailedError(
                f"{Outcome.ALL_SEEDS_FAILED.value}; lower agents.learning_rate or change the loss."
            )

    def _legs(self, current: Round) -> Any:
        """Each position's leg of a round."""
        consensus = self._progress.consensus
        shared = self._share(consensus.images) if consensus is not None else None
        own = back_to_own_order(self._orders()).tolist()
        return lambda position: Leg(
            current.index, current.until_step, shared, tuple(own[position]) if consensus is not None else ()
        )

    def _again(self, positions: Iterable[int], save: int | None = None) -> None:
        """Have the last round made again: by seeds whose candidates were lost, or to save it."""
        members = [position for position in positions if position in self._itinerary.members]
        orders = {position: self._itinerary.again(position, save) for position in members}
        enough = partial(enough_done, last_round=True, waits_for_all=True)
        found, gone = self._group.run_round(orders, enough, partial(give_up, config=self._config.agents))
        for position in gone:
            self._itinerary.leave(position)
            self._progress.candidates.pop(position, None)
        self._progress.candidates |= found

    def _usable(self, only_fresh: bool = False) -> list[int]:
        positions, candidates = list(self._progress.candidates), list(self._progress.candidates.values())
        chosen = fresh(candidates, self._config.coordinator) if only_fresh else usable(candidates)
        return [positions[index] for index in chosen]

    def _orders(self) -> Int[Tensor, "seed batch"]:
        return self._progress.orders if self._progress.orders is not None else self._own_orders()

    def _own_orders(self) -> Int[Tensor, "seed batch"]:
        return torch.arange(self._update.image_count).repeat(len(self._group.seeds), 1)

    def _share(self, images: Tensor) -> Any:
        # Shared once however many seeds and rounds use it.
        if self._shared[0] is not images:
            self._shared = (images, self._group.share(images))
        return self._shared[1]

    def _form_consensus(self, current: Round) -> None:
        positions = self._usable(only_fresh=self._config.coordinator.mode is Mode.ASYNC)
        if not positions:
            return
        consensus, orders, positions = self._meet(positions, current.index)
        every = self._own_orders()
        every[positions] = orders
        self._progress.agree(consensus, every, current.until_step)

    def _meet(self, positions: list[int], index: int) -> Any:
        """The consensus of these seeds, their orders, and the seeds that were there after all."""
        while True:
            try:
                return *self._group.form_consensus(positions, self._labels, index, self._config.registration), positions
            except CandidatesLostError as error:
                self._again(error.positions)
                positions = [position for position in positions if position in self._progress.candidates]

    # Membership.

    def _gather(self, checkpoint: Checkpoint | None = None) -> None:
        """Wait until enough agents are there, and let new ones take part."""
        began = time.monotonic()
        paused = False
        # Nobody is waited for while a run is under way: who comes later joins later.
        waiting = not self._itinerary.members
        while True:
            here = self._group.present() | frozenset(self._itinerary.members)
            waited = time.monotonic() - began if waiting else float("inf")
            decision = decide_members(here, self._group.room(), waited, self._config.agents)
            if isinstance(decision, Go):
                break
            if decision.paused and not paused:
                paused = True
                self.note("paused", decision.reason.capitalize() + ".", level="warning")
            self._tell(phase=decision.reason)
            self.idle()
            time.sleep(_POLL_SECONDS)
        if paused:
            self.note("resumed", "Enough agents are present again; the run goes on.")
        for position in decision.members:
            if position not in self._itinerary.members:
                self._admit(position, checkpoint)

    def _admit(self, position: int, checkpoint: Checkpoint | None) -> None:
        progress, seed = self._progress, self._group.seeds[position]
        state = checkpoint.states.get(seed) if checkpoint is not None else None
        step = self._rounds[progress.next_round - 1].until_step if progress.next_round else 0
        if state is not None or step == 0:
            self._itinerary.enter(position, state.step if state is not None else 0, state=state)
            return
        self._itinerary.enter(position, step, start=self._share(self._meeting_point()))
        if progress.orders is not None:
            progress.orders[position] = torch.arange(self._update.image_count)
        self.note("seed_joined", "{seed} joined from the consensus.", seeds=(seed,), round=progress.next_round)

    def _meeting_point(self) -> Tensor:
        """What a seed that comes late begins near: the consensus, or what it would be now."""
        if self._progress.consensus is not None:
            return self._progress.consensus.images
        consensus, _, _ = self._meet(self._usable(), self._progress.next_round)
        images: Tensor = consensus.images
        return images

    # Beginning and end.

    def _find_checkpoint(self) -> Checkpoint | None:
        if self._store is None or self._storage is None:
            return None
        if not self._resume:
            self._store.clear()
            remove_result(self._storage)
            return None
        checkpoint, messages = self._store.latest()
        for text in messages:
            self.note("checkpoint_refused", text, level="warning")
        if checkpoint is None:
            self.note("note", "There was no checkpoint to continue from, so the run began anew.")
        return checkpoint

    def _continue_from(self, checkpoint: Checkpoint) -> None:
        self._progress.restore(checkpoint.round, checkpoint.progress, checkpoint.tensors)
        self._saving.newest = checkpoint.round
        text = f"Continued after round {checkpoint.round + 1} of {len(self._rounds)}."
        self.note("coordinator_restarted", text, round=checkpoint.round)

    def _conclude(self, prepared: Preparation) -> Reconstruction:
        progress = self._progress
        if progress.next_round == len(self._rounds) and not progress.candidates:
            # Continued from the last round: the seeds need not move, but their candidates are wanted.
            self._run_round(self._rounds[-1])
        while True:
            positions = finalists({position: progress.candidates[position] for position in self._usable()})
            try:
                candidates: list[Candidate] = self._group.fetch(positions)
                break
            except CandidatesLostError as error:
                self._again(error.positions)
        finished = progress.next_round == len(self._rounds)
        self._save_last()
        orders = self._orders()[positions]
        return conclude(self._update, self._config, prepared, progress, candidates, orders, finished)

    def _save_last(self) -> None:
        """Bring the last round into the storage too, which was skipped if another one was still being written."""
        if self._store is None:
            return
        self._settle()
        last, members = self._progress.next_round - 1, self._itinerary.members
        if self._saving.newest < last:
            self._saving.begin(last, members)
            self._saving.add_progress(last, self._progress)
            self._again(members, save=last)
            self._settle()
        self._saving.write_curves(self._progress, wait=True)

    def _settle(self) -> None:
        while not self._saving.free:
            self._group.settle(_POLL_SECONDS)
            self.idle()

    # What a person sees.

    def _computing(self, seconds: float) -> float:
        slowest = max((candidate.seconds for candidate in self._progress.candidates.values()), default=0.0)
        return min(1.0, slowest / seconds) if seconds > 0 else 0.0

    def _tell(self, **facts: Any) -> None:
        progress, config = self._progress, self._config.coordinator
        period = config.period if config.mode is Mode.ASYNC else None
        self.status = replace(
            self.status,
            round=progress.next_round,
            seeds=seed_statuses(self._group.seeds, progress, set(self._itinerary.members), period),
            rejected=progress.registration[-1]["rejected"] if progress.registration else 0.0,
            saved_round=self._saving.newest,
            messages=progress.events.messages(),
            **facts,
        )

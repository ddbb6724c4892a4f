"""The coordinator: gathers candidates, has them registered into a consensus, gives it back, and saves each round."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from ..agents import Account, Candidate, Outcome
from ..capture import CapturedUpdate
from ..storage.folders import Storage, StorageError
from ..storage.tensor_file import StateFile
from ..target.preparation import Preparation, prepare
from .checkpoints import Checkpoint, CheckpointStore, FencedError
from .config import AttackConfig, Mode
from .event_log import log_progress
from .events import EventKind, Level
from .finishing import conclude, finalists
from .group import AgentGroup, CandidatesLostError
from .identity import find_generator, identity
from .orders import Itinerary
from .parts import Part
from .phase import Phase, Wait
from .policy import Go, decide_members, plan_rounds
from .progress import Progress
from .reconstruction import Reconstruction
from .result_file import read_result, write_result
from .resuming import continuation, find_checkpoint
from .rounds import Rounds
from .saving import Saving
from .status import Status, seed_statuses

_POLL_SECONDS = 0.05
# With hundreds of seeds, telling where each of them is costs more than hearing of them.
_TELL_SECONDS = 0.25


class Coordinator:
    """Runs one attack over a group of agents.

    Args:
        update: What the server holds.
        model: The server's model.
        config: The attack.
        group: The agents, one per seed.
        storage: For ``checkpoints/``, ``metrics.jsonl`` and ``events.jsonl``, or None to keep nothing.
        resume: Continue from the newest checkpoint in the storage.
        restart: Delete the checkpoints and the result that lie in the storage; without it they end the run.
        notes: What is known before the run and belongs among its messages.

    Raises:
        ModelError: The generator that the configuration names cannot be loaded.
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
        restart: bool = False,
    ) -> None:
        self._update, self._config, self._group, self._model = update, config, group, [model]
        self._storage, self._resume, self._restart = storage, resume, restart
        self._generator = find_generator(config, update)
        self._store = CheckpointStore(storage, identity(config, update, self._generator)) if storage else None
        self._plan = plan_rounds(config.agents.iterations, config.coordinator)
        self._progress = Progress()
        for text in notes:
            self.note(EventKind.NOTE, text)
        self._saving = Saving(self._store, storage, group.seeds, self.note, config.coordinator.save_seconds)
        self._itinerary = Itinerary(epoch=1)
        self._stop = threading.Event()
        self._told, self.kept = 0.0, True  # the latter of the result, where there is a storage
        seeds = seed_statuses(group.seeds, self._progress, set(), None)
        self._status = Status(rounds=len(self._plan), iterations=config.agents.iterations, seeds=seeds)

    def run(self) -> Reconstruction:
        """The whole attack, once: the preparation takes the model and copies it, and two copies are much memory.

        Raises:
            UpdateError, LabelError: The update cannot be attacked.
            CheckpointError: ``resume`` found a checkpoint of another run, without it the storage holds a run, or
                (`FencedError`) another coordinator has taken this run over.
            AllSeedsFailedError: No seed is left.
        """
        # A checkpoint of another run is refused before any work is done.
        checkpoint = find_checkpoint(self._store, self._storage, self._resume, self._restart, self.note)
        if checkpoint is not None and self._storage is not None:
            result = read_result(self._storage)
            # That of a run that was stopped, and now goes on, stays until there is a newer one.
            if result is not None and result.outcome is Outcome.FINISHED:
                return result
        if self._store is not None:
            self._saving.epoch = self._store.claim()
            self._itinerary = Itinerary(self._saving.epoch)
        self._enter(Phase.PREPARING)
        self._group.place(self)  # processes begin meanwhile
        prepared = prepare(self._update, self._model.pop(), self._config.request, self._generator, self._prepares)
        for text in prepared.messages:
            self.note(EventKind.NOTE, text)
        if checkpoint is not None:
            self._continue_from(checkpoint)
        self._group.open(prepared.target)
        rounds = Rounds(
            self._group,
            self._config,
            prepared.target.interchangeable,
            self._progress,
            self._saving,
            self._itinerary,
            self._stop,
        )
        try:
            self._make_rounds(rounds, checkpoint)
            self._enter(Phase.CHOOSING)
            result = self._conclude(rounds, prepared)
            self.kept = self.keep(result)
        except FencedError:
            raise
        except Exception as error:
            self.note(EventKind.FAILED, f"The run ended: {error}", level=Level.ERROR)
            self._saving.write_curves(self._progress, wait=True)
            raise
        finally:
            self._saving.close()
        return result

    def keep(self, result: Reconstruction) -> bool:
        """Put the result into the storage; False, and it is told, where that cannot be done now."""
        try:
            if self._storage is not None:
                write_result(self._storage, result)
        except StorageError as error:
            self.note(EventKind.CHECKPOINT_FAILED, f"The result is not saved yet: {error}", level=Level.ERROR)
            self._tell()
            return False
        return True

    def stop(self) -> None:
        """End at the next round boundary with what there is."""
        self._stop.set()

    # What the group tells.

    def note(
        self,
        kind: EventKind,
        text: str,
        *,
        seeds: Iterable[int] = (),
        level: Level = Level.INFO,
        round: int | None = None,
    ) -> None:
        """Something that a person should know; see `EventLog.note`."""
        self._progress.events.note(kind, text, seeds=seeds, level=level, round=round)
        if kind is EventKind.AGENT_LOST:
            for seed in seeds:
                position = self._group.seeds.index(seed)
                self._progress.deaths[position] = self._progress.deaths.get(position, 0) + 1

    def waits(self, wait: Wait | None) -> None:
        """The run stands still for want of agents; None: it goes on."""
        if wait is None:
            self.note(EventKind.RESUMED, "Enough agents are present again; the run goes on.")
        else:
            self.note(EventKind.PAUSED, f"{wait}.", level=Level.WARNING)
        self._enter(Phase.OPTIMISING if wait is None else wait.phase, wait)

    def saved(self, round: int, position: int, state: StateFile | str) -> None:
        """A seed's state of a round lies in the storage, or why it does not."""
        self._saving.add_state(round, position, state)

    def saved_within(self, part: Part, position: int, found: tuple[StateFile, Account] | str | None) -> None:
        """A seed's state in the middle of a round lies in the storage, or why it does not."""
        self._saving.add_state_within(part, position, found)

    def idle(self) -> None:
        """While a round runs: complete checkpoints, begin one where one is due, tell where the run is."""
        round, states = self._saving.poll()
        for position, state in states.items():
            if self._itinerary.moved(position, round, state):
                self._group.renew(position, self._itinerary.again(position))
        if (part := self._saving.due()) is not None:
            self._group.save_within(part)
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            self._tell()

    # Rounds.

    def _make_rounds(self, rounds: Rounds, checkpoint: Checkpoint | None) -> None:
        progress = self._progress
        self._gather(rounds, checkpoint)
        for current in self._plan[progress.next_round :]:
            self._gather(rounds)
            if self._stop.is_set():
                return
            self._enter(Phase.OPTIMISING)
            began = time.perf_counter()
            rounds.make(current, last=current is self._plan[-1])
            if current.forms_consensus:
                rounds.form_consensus(current)
            progress.next_round, seconds = current.index + 1, time.perf_counter() - began
            progress.seconds += seconds
            self._saving.add_progress(current.index, progress)
            self._saving.write_curves(progress)
            self._tell(round_seconds=seconds, computing=progress.computing(seconds))

    # Membership.

    def _gather(self, rounds: Rounds, checkpoint: Checkpoint | None = None) -> None:
        """Wait until enough agents are there, and let new ones take part."""
        began, paused = time.monotonic(), False
        # Nobody is waited for while a run is under way: who comes later joins later.
        waiting = not self._itinerary.members
        while True:
            here = self._group.present() | frozenset(self._itinerary.members)
            waited = time.monotonic() - began if waiting else float("inf")
            decision = decide_members(here, self._group.room(), waited, self._config.agents)
            if isinstance(decision, Go) or (self._stop.is_set() and here):
                break
            if decision.paused and not paused:
                paused = True
                self.waits(decision)
            self._enter(decision.phase, decision)
            self.idle()
            time.sleep(_POLL_SECONDS)
        if paused:
            self.waits(None)
        self._admit(sorted(here - set(self._itinerary.members)), rounds, checkpoint)

    def _admit(self, positions: list[int], rounds: Rounds, checkpoint: Checkpoint | None) -> None:
        """Let seeds take part: from their own states first, then near the others."""
        step = self._plan[self._progress.next_round - 1].until_step if self._progress.next_round else 0
        states = checkpoint.states if checkpoint is not None else {}
        for position in sorted(positions, key=lambda position: self._group.seeds[position] not in states):
            seed = self._group.seeds[position]
            if seed not in states and step > 0 and not rounds.meets and self._itinerary.members:
                continue  # nobody has shown yet where to begin: it joins after this round
            if rounds.admit(position, step, states.get(seed)):
                text = "{seed} joined from the consensus."
                self.note(EventKind.SEED_JOINED, text, seeds=(seed,), round=self._progress.next_round)

    # Beginning and end.

    def _continue_from(self, checkpoint: Checkpoint) -> None:
        self._progress.restore(checkpoint.round, checkpoint.progress, checkpoint.tensors)
        self._saving.newest = checkpoint.round
        text = continuation(checkpoint, self._plan)
        self.note(EventKind.COORDINATOR_RESTARTED, text, round=checkpoint.round)

    def _conclude(self, rounds: Rounds, prepared: Preparation) -> Reconstruction:
        progress = self._progress
        if not progress.accounts:
            # Continued after this round, and ended at once: the seeds need not move, but their candidates are wanted.
            progress.next_round = max(1, progress.next_round)
            rounds.make(self._plan[progress.next_round - 1], last=True)
            self._saving.add_progress(progress.next_round - 1, progress)
        # First: what is only done for the result of a stopped run is not what it continues from.
        self._save_last(rounds)
        if progress.consensus is None:
            rounds.form_consensus(self._plan[progress.next_round - 1])
        while True:
            usable = {position: progress.accounts[position] for position in rounds.usable()}
            positions = finalists(usable, progress.history)
            try:
                candidates: list[Candidate] = self._group.fetch(positions)
                break
            except CandidatesLostError as error:
                rounds.again(error.positions)
        permutations, finished = rounds.permutations[positions], progress.next_round == len(self._plan)
        return conclude(self._update, self._config, prepared, progress, candidates, permutations, finished)

    def _save_last(self, rounds: Rounds) -> None:
        """Bring the last round into the storage too, which was skipped if another one was still being written."""
        if self._store is not None:
            rounds.save_last(self._progress.next_round == len(self._plan), self._finish_saving)
            self._saving.write_curves(self._progress, wait=True)
            self._store.settle()

    def _finish_saving(self) -> None:
        while self._saving.pending:
            self._group.await_writes(_POLL_SECONDS)
            self.idle()
        self._tell()

    # What a person sees.

    @property
    def status(self) -> Status:
        """Where the run is; what happened is told also while this thread waits for the storage."""
        events = self._progress.events
        return replace(self._status, events=events.events(), events_left_out=events.left_out)

    def _enter(self, phase: Phase, wait: Wait | None = None) -> None:
        self._tell(phase=phase, wait=wait)

    def _prepares(self, words: str) -> None:
        self._tell(detail=log_progress(words))

    def _tell(self, **facts: Any) -> None:
        progress, config = self._progress, self._config.coordinator
        period = config.period if config.mode is Mode.ASYNC else None
        self._status = replace(
            self._status,
            round=progress.next_round,
            seeds=seed_statuses(self._group.seeds, progress, set(self._itinerary.members), period),
            rejected=progress.registration[-1]["rejected"] if progress.registration else 0.0,
            saved_round=self._saving.newest,
            **facts,
        )

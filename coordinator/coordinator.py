"""The coordinator: gathers candidates, has them registered into a consensus, gives it back, and saves each round."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..agents import Candidate, Objective, Outcome
from ..capture import CapturedUpdate
from ..registration import Consensus, register
from .checkpoints import Checkpoint, CheckpointError, CheckpointStore, read_tensors, write_file, write_tensors
from .config import AttackConfig, Mode
from .group import AgentGroup
from .ordering import arrange, back_to_own_order, common_order
from .policy import Round, fresh, plan_rounds, usable
from .preparation import Preparation, identity, prepare
from .reconstruction import Reconstruction
from .selection import choose
from .status import Status

_CONSENSUS_FILE = "consensus.safetensors"
_POLL_SECONDS = 0.05


class AllSeedsFailedError(RuntimeError):
    """Every seed diverged more often than its restarts allow."""


@dataclass
class _Progress:
    """What the rounds have produced so far; all of it goes into a checkpoint."""

    next_round: int = 0
    consensus: Consensus | None = None
    orders: Int[Tensor, "seed batch"] | None = None
    candidates: list[Candidate] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    registration: list[dict[str, float]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Coordinator:
    """Runs one attack over a group of agents.

    Args:
        update: What the server holds.
        model: The server's model.
        config: The attack.
        group: The agents, one per seed.
        out: Folder for ``checkpoints/`` and ``metrics.jsonl`` (one row per recorded step), or None to keep neither.
        resume: Continue from the newest checkpoint in that folder.
        notes: What is known before the run and belongs among its messages.
    """

    def __init__(
        self,
        update: CapturedUpdate,
        model: nn.Module,
        config: AttackConfig,
        group: AgentGroup,
        out: Path | None = None,
        resume: bool = False,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._update, self._model, self._config, self._group = update, model, config, group
        self._store = CheckpointStore(out / "checkpoints", identity(config, update)) if out else None
        self._metrics = out / "metrics.jsonl" if out else None
        self._resume = resume
        self._rounds = plan_rounds(config.agents.iterations, config.coordinator)
        self._progress = _Progress(messages=list(notes))
        self._stop = threading.Event()
        self.status = Status(rounds=len(self._rounds), iterations=config.agents.iterations, seeds=group.seeds)

    def run(self) -> Reconstruction:
        """The whole attack.

        Raises:
            UpdateError, LabelError: The update cannot be attacked.
            CheckpointError: ``resume`` found a checkpoint of another run.
            AllSeedsFailedError: No seed is left.
        """
        # A checkpoint of another run is refused before any work is done.
        checkpoint = self._find_checkpoint()
        self._tell(phase="reading labels and peeling layers")
        prepared = prepare(self._update, self._model, self._config)
        self._progress.messages += [*prepared.messages, *self._group.start(prepared.target)]
        if checkpoint is not None:
            self._continue_from(checkpoint)
        self._tell(phase="optimising")
        labels = prepared.labels.labels
        if self._config.coordinator.mode is Mode.SYNC:
            self._run_sync(labels)
        else:
            self._run_async(labels)
        self._tell(phase="choosing images")
        return self._finish(prepared)

    def stop(self) -> None:
        """End at the next round boundary (``sync``) or as soon as possible (``async``) with what there is."""
        self._stop.set()

    def _tell(self, **facts: Any) -> None:
        progress = self._progress
        self.status = replace(
            self.status,
            round=progress.next_round,
            candidates=tuple((c.seed, c.incarnation, c.step, c.losses, c.outcome) for c in progress.candidates),
            messages=tuple(progress.messages),
            **facts,
        )

    def _run_sync(self, labels: Int[Tensor, " batch"]) -> None:
        progress = self._progress
        for current in self._rounds[progress.next_round :]:
            if self._stop.is_set():
                return
            began = time.perf_counter()
            images = progress.consensus.images if progress.consensus else None
            orders = progress.orders if progress.orders is not None else self._identity_orders()
            candidates = self._group.run_round(current.until_step, images, back_to_own_order(orders))
            self._take(candidates, current.index)
            if current.forms_consensus:
                self._form_consensus(usable(candidates), labels, current)
            progress.next_round = current.index + 1
            progress.seconds += time.perf_counter() - began
            self._save(current.index)
            self._tell()

    def _run_async(self, labels: Int[Tensor, " batch"]) -> None:
        """Agents run freely; a round ends when the middle seed has passed its last step."""
        progress = self._progress
        if progress.consensus is not None and progress.orders is not None:
            self._group.broadcast(progress.consensus.images, back_to_own_order(progress.orders))
        self._group.begin(self._config.coordinator.period)
        for current in self._rounds[progress.next_round :]:
            began = time.perf_counter()
            while not self._passed(current):
                if self._stop.wait(_POLL_SECONDS):
                    return
            candidates = self._group.latest()
            self._take(candidates, current.index)
            if current.forms_consensus:
                self._form_consensus(fresh(candidates, self._config.coordinator), labels, current)
                if progress.consensus is not None and progress.orders is not None:
                    self._group.broadcast(progress.consensus.images, back_to_own_order(progress.orders))
            progress.next_round = current.index + 1
            progress.seconds += time.perf_counter() - began
            self._save(current.index)
            self._tell()

    def _passed(self, current: Round) -> bool:
        steps = sorted(self._group.steps())
        if current.until_step >= self._config.agents.iterations:
            return steps[0] >= current.until_step
        return steps[len(steps) // 2] >= current.until_step

    def _identity_orders(self) -> Int[Tensor, "seed batch"]:
        return torch.arange(self._update.image_count).repeat(len(self._group.seeds), 1)

    def _take(self, candidates: list[Candidate], index: int) -> None:
        progress = self._progress
        progress.candidates = candidates
        for candidate in candidates:
            progress.messages += candidate.messages
            rate = len(candidate.trace) and candidate.seconds
            steps = candidate.trace[-1]["step"] - candidate.trace[0]["step"] if candidate.trace else 0.0
            for row in candidate.trace:
                facts = {"round": index, "seed": candidate.seed, "incarnation": candidate.incarnation}
                progress.history.append({**facts, **row, "steps_per_second": steps / rate if rate else 0.0})
        self._write_metrics()
        if not usable(candidates):
            raise AllSeedsFailedError(
                f"{Outcome.ALL_SEEDS_FAILED.value}; lower agents.learning_rate or change the loss."
            )

    def _write_metrics(self) -> None:
        if self._metrics is None:
            return
        lines = "".join(json.dumps(row) + "\n" for row in self._progress.history)
        try:
            write_file(self._metrics, lines.encode())
        except CheckpointError as error:
            self._progress.messages.append(f"The loss curves were not saved: {error}.")

    def _form_consensus(self, positions: list[int], labels: Int[Tensor, " batch"], current: Round) -> None:
        if not positions:
            return
        progress = self._progress
        images = torch.stack([candidate.images for candidate in progress.candidates])
        kept = images[positions]
        orders = self._identity_orders()
        orders[positions] = common_order(kept, labels)
        seeds = [self._group.seeds[position] for position in positions]
        consensus = register(
            arrange(kept, orders[positions]), seeds=seeds, round=current.index, config=self._config.registration
        )
        progress.consensus, progress.orders = consensus, orders
        progress.messages += [f"Round {current.index}: {reason}" for reason in consensus.left_out]
        progress.registration.append(
            {
                "round": current.index,
                "step": current.until_step,
                "seeds": len(consensus.seeds),
                "rejected": float(consensus.rejected.float().mean()),
                "agreement": float(consensus.agreement.mean()),
            }
        )

    def _finish(self, prepared: Preparation) -> Reconstruction:
        progress, config, update = self._progress, self._config, self._update
        positions = usable(progress.candidates)
        assert progress.consensus is not None
        assert progress.orders is not None
        candidates = [progress.candidates[position] for position in positions]
        own = arrange(torch.stack([c.images for c in candidates]), progress.orders[positions])
        candidates = [replace(c, images=images) for c, images in zip(candidates, own, strict=True)]
        objective = Objective(prepared.target, config.objective)
        choice = choose(own, progress.consensus.images, objective.evidence)
        names = [*(f"seed {candidate.seed}" for candidate in candidates), "consensus"]
        finished = progress.next_round == len(self._rounds)
        return Reconstruction(
            images=update.normalisation.invert(choice.images).clamp(0, 1),
            labels=prepared.labels,
            consensus=update.normalisation.invert(progress.consensus.images).clamp(0, 1),
            agreement=progress.consensus.agreement,
            candidates=tuple(candidates),
            sources=tuple(names[source] for source in choice.sources),
            gradient_loss=objective.gradient_loss(choice.images),
            history=tuple(progress.history),
            registration=tuple(progress.registration),
            rounds=progress.next_round,
            iterations=max(candidate.step for candidate in candidates),
            seconds=progress.seconds,
            restarts=sum(candidate.incarnation for candidate in progress.candidates),
            outcome=Outcome.FINISHED if finished else Outcome.INTERRUPTED,
            messages=tuple(dict.fromkeys(progress.messages)),
            config=identity(config, update),
            model_id=update.model_id,
            batch_norm=update.batch_norm.value,
            defence=update.defence,
            normalisation=update.normalisation,
        )

    def _find_checkpoint(self) -> Checkpoint | None:
        if self._store is None or not self._resume:
            return None
        checkpoint, messages = self._store.latest()
        self._progress.messages += messages
        if checkpoint is None:
            self._progress.messages.append("There was no checkpoint to continue from, so the run began anew.")
        return checkpoint

    def _save(self, index: int) -> None:
        """A round that cannot be saved does not end the run: the last good checkpoint stays, and a message says so."""
        if self._store is None:
            return
        progress = self._progress
        try:
            folder = self._store.prepare(index)
            files = self._group.save(folder)
            if progress.consensus is not None and progress.orders is not None:
                consensus = progress.consensus
                tensors = {"images": consensus.images, "agreement": consensus.agreement, "orders": progress.orders}
                tensors |= {"rejected": consensus.rejected, "seeds": torch.tensor(consensus.seeds)}
                files[_CONSENSUS_FILE] = write_tensors(folder / _CONSENSUS_FILE, tensors)
            facts = {name: getattr(progress, name) for name in ("history", "registration", "messages", "seconds")}
            self._store.commit(folder, index, files, facts)
        except CheckpointError as error:
            progress.messages.append(f"Round {index} was not saved: {error}. The last good checkpoint stays.")

    def _continue_from(self, checkpoint: Checkpoint) -> None:
        self._group.restore(checkpoint.folder)
        progress, saved = self._progress, checkpoint.progress
        progress.next_round = checkpoint.round + 1
        progress.history = list(saved["history"])
        progress.registration = list(saved["registration"])
        progress.messages = list(dict.fromkeys([*saved["messages"], *progress.messages]))
        progress.seconds = float(saved["seconds"])
        if (checkpoint.folder / _CONSENSUS_FILE).exists():
            tensors = read_tensors(checkpoint.folder / _CONSENSUS_FILE)
            progress.orders = tensors["orders"]
            progress.consensus = Consensus(
                images=tensors["images"],
                agreement=tensors["agreement"],
                seeds=tuple(int(seed) for seed in tensors["seeds"]),
                round=checkpoint.round,
                displacement=None,
                rejected=tensors["rejected"],
                left_out=(),
            )
        progress.messages.append(f"Continued after round {checkpoint.round + 1} of {len(self._rounds)}.")
        if progress.next_round == len(self._rounds):
            progress.candidates = self._group.latest()

"""From the last round to the reconstruction."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..agents import Candidate, Objective, Outcome, Standing, judged_at_once
from ..capture import CapturedUpdate, defence_words
from ..target.labels import joint_labels
from ..target.preparation import Preparation
from .config import AttackConfig
from .identity import identity
from .permutations import permute
from .progress import Progress
from .reconstruction import Reconstruction, Source
from .selection import STANDS_OUT, choose

# The seeds whose images are judged and kept; of more, those with the lowest gradient loss. Each costs the coordinator a
# batch of memory, and each judgement a gradient.
MOST_KEPT = 16


def finalists(standings: Mapping[int, Standing], history: Sequence[Mapping[str, float]]) -> list[int]:
    """Positions of the seeds whose images are wanted for the final choice, in rising order.

    Args:
        standings: Of the seeds that are still in the run, by position.
        history: Of the run; its last row of each seed tells the losses.
    """
    positions = sorted(standings)
    if len(positions) <= MOST_KEPT:
        return positions
    last = {int(row["seed"]): row for row in history}
    best = sorted(positions, key=lambda position: _evidence(last.get(standings[position].seed, {})))
    return sorted(best[:MOST_KEPT])


def _evidence(losses: Mapping[str, float]) -> float:
    return losses.get("gradient", losses.get("activation", losses.get("total", float("inf"))))


def conclude(
    update: CapturedUpdate,
    config: AttackConfig,
    prepared: Preparation,
    progress: Progress,
    candidates: list[Candidate],
    permutations: Int[Tensor, "seed batch"],
    finished: bool,
) -> Reconstruction:
    """Choose the images by the attacker's own evidence, and put together all that is known.

    Args:
        update: What the server holds.
        config: The attack.
        prepared: Labels and target.
        progress: Of all rounds.
        candidates: Of the seeds to choose from, with images.
        permutations: Of those seeds, see `match_images`.
        finished: False when the run was stopped early.
    """
    assert progress.consensus is not None
    prepared = with_found_labels(prepared, candidates, permutations)
    own = permute(torch.stack([c.images for c in candidates]), permutations)
    candidates = [
        replace(c, images=images, labels=None if c.labels is None else c.labels[order])
        for c, images, order in zip(candidates, own, permutations, strict=True)
    ]
    at_once = judged_at_once(update.image_shape, config.agents.images_at_once)
    objective = Objective(prepared.target, config.objective, images_at_once=at_once)
    batches, evidence = [Source(candidate.seed) for candidate in candidates], objective.evidence
    start = prepared.target.start
    if start is not None and start.fitted:
        # Seeds descend on features alone: whether that was for the better, the gradients in front of them tell.
        own = torch.cat([own, start.images[None].to(own)])
        batches, evidence = [*batches, Source(start=True)], objective.gradient_loss
    choice = choose(own, progress.consensus.images, evidence)
    batches.append(Source())
    facts: dict[str, Any] = identity(config, update, prepared.target.generator)
    return Reconstruction(
        images=update.normalisation.invert(choice.images).clamp(0, 1),
        labels=prepared.labels,
        consensus=update.normalisation.invert(progress.consensus.images).clamp(0, 1),
        agreement=progress.consensus.agreement,
        candidates=tuple(candidates),
        sources=tuple(batches[position] for position in choice.sources),
        gradient_loss=objective.gradient_loss(choice.images),
        history=tuple(progress.history),
        registration=tuple(progress.registration),
        rounds=progress.next_round,
        iterations=max(candidate.step for candidate in candidates),
        seconds=progress.seconds,
        restarts=sum(account.incarnation for account in progress.accounts.values()),
        outcome=Outcome.FINISHED if finished else Outcome.INTERRUPTED,
        messages=progress.events.messages(),
        config=facts,
        model_id=update.model_id,
        batch_norm=update.batch_norm.value,
        defence=defence_words(update.defences),
        normalisation=update.normalisation,
        belief=prepared.belief,
        training=prepared.training,
        facts=prepared.facts,
        limits=prepared.limits,
        known=prepared.known,
        peeling=prepared.peeling,
    )


def with_found_labels(
    prepared: Preparation, seeds: Sequence[Standing], permutations: Int[Tensor, "seed batch"]
) -> Preparation:
    """Where labels are optimised with the images, with those that the seeds found, as if they had been known: those of
    a seed that explains the update better than all others, which may be the only one that found anything, and else each
    image's likeliest by the mean of its probabilities over the seeds.

    Args:
        prepared: With or without labels.
        seeds: As they stand.
        permutations: Which image of each seed stands at each place; see `match_images`.
    """
    found = [seed.labels[own] for seed, own in zip(seeds, permutations, strict=True) if seed.labels is not None]
    if not found:
        return prepared
    labels = joint_labels(_likeliest(seeds, found))
    return replace(prepared, labels=labels, target=replace(prepared.target, labels=labels.labels, joint_labels=False))


def _likeliest(seeds: Sequence[Standing], found: Sequence[Tensor]) -> Tensor:
    """The probabilities of the seed whose loss stands out, or their mean; each seed's loss is with its own labels."""
    losses = [_evidence(seed.losses) for seed in seeds if seed.labels is not None]
    best = min(range(len(losses)), key=losses.__getitem__)
    if losses[best] < STANDS_OUT * statistics.median(losses):
        return found[best]
    return torch.stack([*found]).mean(dim=0)

"""Made-up attacks with known quality, so that the audit can be tested without running one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradinversion.agents import Candidate, Outcome
from gradinversion.capture import BatchNormMode, ClientFacts, Normalisation, PrivateBatch, RecoveredLabels, told
from gradinversion.coordinator import Reconstruction, Source
from gradinversion.target.belief import Belief
from torch import Tensor

NORMALISATION = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
Make = Callable[..., tuple[Reconstruction, PrivateBatch]]


def make_private(batch: int, size: int) -> PrivateBatch:
    """Smooth colour gradients with a square in each: natural enough for a PSNR, and made in no time."""
    ramp = torch.linspace(0.1, 0.9, size)
    flat = torch.full((size, size), 0.5)
    images = torch.stack([torch.stack([ramp.outer(ramp), ramp.expand(size, size), ramp[:, None] * flat])] * batch)
    for index in range(batch):
        images[index, index % 3, : size // 2, index % size :] = 0.2 + 0.6 * index / batch
    return PrivateBatch(images, torch.arange(batch), tuple(f"photo{index}.png" for index in range(batch)))


def make_history(seeds: int, rounds: int, steps: int) -> tuple[dict[str, float], ...]:
    """A falling loss per seed; seed 1 is restarted half way."""
    rows = []
    for index in range(1, rounds + 1):
        for seed in range(seeds):
            again = seed == 1 and index > rounds // 2
            since = index - rounds // 2 if again else index
            gradient = 0.03 + 0.9 * math.exp(-4 * since / rounds) + 0.01 * seed
            rows.append(
                {
                    "round": index,
                    "seed": seed,
                    "incarnation": int(again),
                    "step": index * steps // rounds,
                    "gradient": gradient,
                    "total_variation": 0.08,
                    "total": gradient + 0.004,
                    "steps_per_second": 55.0,
                }
            )
    return tuple(rows)


def make(
    private: PrivateBatch | None = None,
    *,
    batch: int = 4,
    seeds: int = 3,
    size: int = 16,
    noise: float = 0.03,
    rounds: int = 10,
    **changes: Any,
) -> tuple[Reconstruction, PrivateBatch]:
    """A reconstruction that is the private batch plus noise (each seed with a little more), and that batch."""
    private = private or make_private(batch, size)
    generator = torch.Generator().manual_seed(0)

    def noisy(scale: float) -> Tensor:
        return (private.images + scale * torch.randn(private.images.shape, generator=generator)).clamp(0, 1)

    batch = len(private.images)
    losses = {"gradient": 0.041, "total_variation": 0.08, "total": 0.045}
    candidates = tuple(
        Candidate(seed, int(seed == 1), 1000, losses, Outcome.FINISHED, images=NORMALISATION.apply(noisy(noise * 1.4)))
        for seed in range(seeds)
    )
    reconstruction = Reconstruction(
        images=noisy(noise),
        labels=RecoveredLabels(
            private.labels.sort().values, torch.full((batch,), 0.98), "minimum", "every class occurs at most once"
        ),
        consensus=noisy(noise * 1.1),
        agreement=torch.linspace(0.8, 0.95, batch),
        candidates=candidates,
        sources=tuple(Source() if index % 2 else Source(index % max(seeds, 1)) for index in range(batch)),
        gradient_loss=0.0389,
        history=make_history(seeds, rounds, 1000),
        registration=tuple(
            {"round": r, "step": r * 1000 // rounds, "seeds": seeds, "rejected": 0.1, "agreement": 0.5 + 0.04 * r}
            for r in range(1, min(rounds, 10) + 1)
        ),
        rounds=rounds,
        iterations=1000,
        seconds=83.4,
        restarts=1,
        outcome=Outcome.FINISHED,
        messages=("seed 1 was restarted at step 500: the loss stopped being finite",),
        config={"seed": 0, "agents": {"count": seeds, "iterations": 1000, "total_variation_weight": 0.05}},
        model_id="convnet",
        batch_norm="eval",
        defence="none",
        normalisation=NORMALISATION,
        belief=Belief(ClientFacts(told(batch), told(NORMALISATION), told(BatchNormMode.EVAL))),
    )
    return dataclasses.replace(reconstruction, **changes), private


@pytest.fixture(scope="session")
def attack() -> Make:
    """The factory ``make``."""
    return make

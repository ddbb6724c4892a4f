"""The final choice goes by the gradient loss alone."""

from __future__ import annotations

import itertools
import math

import torch
from gradinversion.coordinator import choose


def test_finds_the_best_mixture_when_images_are_independent() -> None:
    torch.manual_seed(0)
    batches = torch.rand(3, 4, 1, 2, 2)
    target = torch.rand(4, 1, 2, 2)

    def loss(images: torch.Tensor) -> float:
        return float((images - target).square().sum())

    best = min(
        itertools.product(range(3), repeat=4),
        key=lambda pick: loss(torch.stack([batches[c, i] for i, c in enumerate(pick)])),
    )
    choice = choose(batches, loss)
    assert choice.sources == best
    assert choice.gradient_loss == loss(choice.images)


def test_a_candidate_without_a_finite_loss_is_never_chosen() -> None:
    batches = torch.stack([torch.full((2, 1, 2, 2), math.nan), torch.ones(2, 1, 2, 2)])
    choice = choose(batches, lambda images: float(images.sum()))
    assert choice.sources == (1, 1)
    assert bool(torch.isfinite(choice.images).all())

"""The final choice goes by the attacker's evidence alone."""

from __future__ import annotations

import math

import torch
from gradinversion.coordinator import choose


def test_the_consensus_is_taken_where_no_seed_is_clearly_better() -> None:
    seeds, consensus = torch.zeros(2, 3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    choice = choose(seeds, consensus, lambda images: 0.9 + 0.1 * float(images.mean()))
    assert choice.sources == (2, 2, 2)
    assert torch.equal(choice.images, consensus)


def test_a_seed_that_is_clearly_better_replaces_it() -> None:
    seeds, consensus = torch.stack([torch.zeros(3, 1, 2, 2), torch.full((3, 1, 2, 2), 0.5)]), torch.ones(3, 1, 2, 2)
    choice = choose(seeds, consensus, lambda images: 0.1 + float(images.mean()))
    assert choice.sources == (0, 0, 0)


def test_the_consensus_stays_where_seeds_match_better_but_none_stands_out() -> None:
    # The mean of seeds that disagree matches the gradient worse than each of them, and is still nearer on average.
    seeds, consensus = torch.stack([torch.zeros(3, 1, 2, 2), torch.full((3, 1, 2, 2), 0.01)]), torch.ones(3, 1, 2, 2)
    choice = choose(seeds, consensus, lambda images: 0.5 + float(images.mean()))
    assert choice.sources == (2, 2, 2)


def test_images_are_mixed_where_each_seed_found_some_of_them() -> None:
    torch.manual_seed(0)
    target = torch.rand(4, 1, 2, 2)
    seeds = torch.stack([target.clone(), target.clone()])
    seeds[0, 2:] += 1
    seeds[1, :2] += 1
    choice = choose(seeds, seeds.mean(dim=0), lambda images: float((images - target).square().sum()))
    assert choice.sources == (0, 0, 1, 1)
    assert torch.equal(choice.images, target)
    assert choice.evidence == 0


def test_what_has_no_finite_evidence_is_never_chosen() -> None:
    seeds = torch.stack([torch.full((2, 1, 2, 2), math.nan), torch.ones(2, 1, 2, 2)])
    choice = choose(seeds, torch.full((2, 1, 2, 2), math.nan), lambda images: float(images.sum()))
    assert choice.sources == (1, 1)
    assert bool(torch.isfinite(choice.images).all())

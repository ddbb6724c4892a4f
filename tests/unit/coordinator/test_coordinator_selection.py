"""The final choice goes by the attacker's evidence alone."""

from __future__ import annotations

import math
from collections.abc import Callable

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


def _by_value(values: dict[tuple[float, ...], float]) -> Callable[[torch.Tensor], float]:
    """Evidence of batches of one-pixel images, by their pixels; of all others it is poor."""
    return lambda images: values.get(tuple(images.flatten().tolist()), 5.0)


def test_a_seed_that_is_only_a_tenth_better_does_not_stand_out() -> None:
    # The evidence of seeds that found the same scatters by about as much.
    seeds, consensus = torch.tensor([[0.0, 0.0], [2.0, 2.0], [3.0, 3.0]])[..., None, None, None], torch.ones(2, 1, 1, 1)
    values: dict[tuple[float, ...], float] = {(1.0, 1.0): 1.0, (2.0, 2.0): 1.0, (3.0, 3.0): 1.0}
    assert choose(seeds, consensus, _by_value({**values, (0.0, 0.0): 0.9})).sources == (3, 3)
    assert choose(seeds, consensus, _by_value({**values, (0.0, 0.0): 0.79})).sources == (0, 0)


def test_an_exchanged_image_has_to_help_by_its_share_of_what_is_clear() -> None:
    # With two images an exchange must lower the evidence by a tenth, half of what a whole batch must.
    seeds, consensus = torch.tensor([[0.0, 0.0], [2.0, 2.0], [3.0, 3.0]])[..., None, None, None], torch.ones(2, 1, 1, 1)
    assert choose(seeds, consensus, _by_value({(1.0, 1.0): 1.0, (0.0, 1.0): 0.92})).sources == (3, 3)
    assert choose(seeds, consensus, _by_value({(1.0, 1.0): 1.0, (0.0, 1.0): 0.89})).sources == (0, 3)


def test_an_exchange_that_pays_only_after_a_later_one_is_found_in_the_second_sweep() -> None:
    # The first image of the seed fits only beside its second, which comes later in a sweep.
    seeds, consensus = torch.tensor([[0.0, 0.0], [2.0, 2.0], [3.0, 3.0]])[..., None, None, None], torch.ones(2, 1, 1, 1)
    values: dict[tuple[float, ...], float] = {(1.0, 1.0): 1.0, (1.0, 0.0): 0.88, (0.0, 0.0): 0.785}
    choice = choose(seeds, consensus, _by_value({**values, (2.0, 2.0): 0.9, (3.0, 3.0): 0.9}))
    assert choice.sources == (0, 0)
    assert choice.evidence == 0.785

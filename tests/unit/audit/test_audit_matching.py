"""Matching against the brute force over all permutations."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from gradinversion.audit import assign, match


@pytest.mark.parametrize("seed", range(5))
def test_assignment_is_the_best_permutation(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, true = torch.rand(5, 1, 4, 4, generator=generator), torch.rand(5, 1, 4, 4, generator=generator)

    def error(order: tuple[int, ...]) -> float:
        return float((images[list(order)] - true).square().sum())

    assert assign(images, true) == min(permutations(range(5)), key=error)


def test_unique_and_recovered_labels_decide_even_against_the_pixels() -> None:
    true = torch.rand(3, 3, 4, 4)
    swapped = true[[1, 2, 0]]  # by pixels 0 would go to 2; the labels say otherwise
    matching = match(swapped, torch.tensor([3, 5, 9]), true, torch.tensor([9, 3, 5]))
    assert matching.method == "labels"
    assert matching.order == (2, 0, 1)
    assert "by label" in matching.reason


def test_repeated_labels_are_matched_by_pixels() -> None:
    true = torch.rand(3, 3, 4, 4)
    matching = match(true[[1, 2, 0]], torch.tensor([0, 0, 1]), true, torch.tensor([0, 1, 0]))
    assert matching.method == "assignment"
    assert matching.order == (2, 0, 1)
    assert "labels repeat" in matching.reason


def test_wrong_labels_are_matched_by_pixels() -> None:
    true = torch.rand(2, 3, 4, 4)
    matching = match(true.flip(0), torch.tensor([0, 7]), true, torch.tensor([0, 1]))
    assert matching.method == "assignment"
    assert matching.order == (1, 0)
    assert "are not those of the private batch" in matching.reason


def test_pixels_that_are_not_finite_still_give_a_permutation() -> None:
    true = torch.rand(3, 1, 4, 4)
    images = true[[2, 0, 1]].clone()
    images[0] = torch.nan
    assert assign(images, true) == (1, 2, 0)


def test_a_private_image_that_is_there_twice_is_recovered_by_one_reconstruction() -> None:
    true = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    true[2] = true[0]
    images = torch.stack([true[1], torch.full_like(true[0], 0.5), true[3], true[0]])
    assert assign(images, true) == (3, 0, 3, 2)

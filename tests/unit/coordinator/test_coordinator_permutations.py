"""Images that share a label are matched between seeds."""

from __future__ import annotations

import itertools

import torch
from gradinversion.coordinator.permutations import invert, match_images, permute


def test_images_of_distinct_labels_keep_their_places() -> None:
    permutations = match_images(torch.rand(3, 4, 3, 4, 4), torch.arange(4))
    assert torch.equal(permutations, torch.arange(4).repeat(3, 1))


def test_repeats_are_matched_like_by_trying_every_permutation() -> None:
    torch.manual_seed(3)
    labels = torch.tensor([0, 1, 1, 1, 2])
    images = torch.rand(5, 3, 4, 4)
    shuffled = images[[0, 3, 1, 2, 4]] + 0.05 * torch.randn(5, 3, 4, 4)
    candidates = torch.stack([images, shuffled])
    permutations = match_images(candidates, labels)

    def cost(places: tuple[int, ...]) -> float:
        return float((images[1:4] - shuffled[list(places)]).square().sum())

    assert tuple(permutations[1, 1:4].tolist()) == min(itertools.permutations([1, 2, 3]), key=cost)
    assert permutations[1, 0] == 0
    assert permutations[1, 4] == 4
    assert float((permute(candidates, permutations)[1] - images).abs().mean()) < 0.1


def test_the_inverse_undoes_a_permutation() -> None:
    torch.manual_seed(0)
    candidates = torch.rand(2, 4, 3, 2, 2)
    permutations = torch.stack([torch.arange(4), torch.tensor([2, 0, 3, 1])])
    permuted = permute(candidates, permutations)
    assert torch.equal(permute(permuted, invert(permutations)), candidates)

"""Images that share a label are brought into one order."""

from __future__ import annotations

import itertools

import torch
from gradinversion.coordinator.ordering import arrange, back_to_own_order, common_order


def test_distinct_labels_keep_their_order() -> None:
    orders = common_order(torch.rand(3, 4, 3, 4, 4), torch.arange(4))
    assert torch.equal(orders, torch.arange(4).repeat(3, 1))


def test_repeats_are_matched_like_by_trying_every_permutation() -> None:
    torch.manual_seed(3)
    labels = torch.tensor([0, 1, 1, 1, 2])
    images = torch.rand(5, 3, 4, 4)
    shuffled = images[[0, 3, 1, 2, 4]] + 0.05 * torch.randn(5, 3, 4, 4)
    candidates = torch.stack([images, shuffled])
    orders = common_order(candidates, labels)

    def cost(places: tuple[int, ...]) -> float:
        return float((images[1:4] - shuffled[list(places)]).square().sum())

    assert tuple(orders[1, 1:4].tolist()) == min(itertools.permutations([1, 2, 3]), key=cost)
    assert orders[1, 0] == 0
    assert orders[1, 4] == 4
    assert float((arrange(candidates, orders)[1] - images).abs().mean()) < 0.1


def test_back_to_own_order_undoes_arrange() -> None:
    torch.manual_seed(0)
    candidates = torch.rand(2, 4, 3, 2, 2)
    orders = torch.stack([torch.arange(4), torch.tensor([2, 0, 3, 1])])
    arranged = arrange(candidates, orders)
    assert torch.equal(arrange(arranged, back_to_own_order(orders)), candidates)

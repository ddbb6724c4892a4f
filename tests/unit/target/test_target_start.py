from __future__ import annotations

import torch
from gradinversion.target import Start


def test_each_seed_but_the_first_adds_noise_as_large_as_the_error() -> None:
    start = Start(torch.zeros(3, 1, 2, 2), torch.tensor([0.1, 0.0, 0.3]), seed=5)
    assert not start.is_known
    assert not bool(start.spread(5, 0).any())
    assert torch.equal(start.spread(6, 0).flatten(), start.error)
    # A seed that failed there does not begin there again.
    assert torch.equal(start.spread(5, 1).flatten(), start.error)


def test_images_that_are_known_are_where_all_seeds_begin() -> None:
    start = Start(torch.zeros(2, 1, 2, 2), torch.zeros(2))
    assert start.is_known
    assert not bool(start.spread(3, 2).any())

from __future__ import annotations

import torch
from gradinversion.peeling.rules.pursued_units import pursued_units
from torch import Tensor

PLACES, EQUATIONS, CHANNELS = 100, 80, 5


def _case(wrong: dict[int, list[int]], noise: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Patches, what is left, and changes of the derivative, where channels have these units on the wrong side."""
    random = torch.Generator().manual_seed(0)
    patches = torch.randn(PLACES, EQUATIONS, generator=random, dtype=torch.float64)
    change = torch.randn(PLACES, CHANNELS, generator=random, dtype=torch.float64)
    left = noise * torch.randn(EQUATIONS, CHANNELS, generator=random, dtype=torch.float64)
    for channel, places in wrong.items():
        for place in places:
            # What was made has less, or more, than what was sent, by the change that sets it right.
            left[:, channel] -= change[place, channel] * patches[place]
    return patches, left, change


def test_units_are_found_one_after_another_with_fewer_equations_than_places() -> None:
    found = pursued_units(*_case({1: [7], 3: [20, 41]}), explained=0.2)
    assert [place.tolist() for place in found.nonzero().T] == [[7, 20, 41], [1, 3, 3]]


def test_what_no_few_units_explain_is_left_as_it_was() -> None:
    patches, left, change = _case({1: [7]})
    left[:, 2] = torch.randn(EQUATIONS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = pursued_units(patches, left, change, explained=0.02)
    assert found.nonzero().tolist() == [[7, 1]]


def test_more_wrong_units_than_equations_can_tell_are_left_as_they_are() -> None:
    """By chance eight of a thousand places explain most of sixteen equations."""
    random = torch.Generator().manual_seed(2)
    patches = torch.randn(1024, 16, generator=random, dtype=torch.float64)
    change = torch.randn(1024, 10, generator=random, dtype=torch.float64)
    wrong = torch.rand(1024, 10, generator=random) < 0.01
    left = -(patches.T @ (change * wrong))
    assert not bool(pursued_units(patches, left, change, explained=0.2).any())


def test_noise_alone_switches_nothing() -> None:
    assert not bool(pursued_units(*_case({}), explained=0.2).any())

"""Images in front of a max-pooling whose output is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradinversion.peeling.cut.winners import candidates
from gradinversion.peeling.kinds import MaxPool


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(3, 2, 1, (8, 8)), (3, 2, 1, (7, 9)), (2, 2, 0, (8, 6)), (3, 1, 1, (5, 5))],
)
def test_every_winner_is_a_candidate_and_no_unit_is_larger_than_told(
    kernel: int, stride: int, padding: int, size: tuple[int, int]
) -> None:
    random = torch.Generator().manual_seed(0)
    front = torch.rand(2, 3, *size, generator=random)
    pool = MaxPool((kernel, kernel), (stride, stride), (padding, padding), (1, 1), False)
    values = pool.forward([front], {})
    may, most = candidates(pool, values, size, 1e-6)
    assert may.shape == (kernel**2, *values.shape)
    assert bool((front <= most).all())
    padded = F.pad(front, (padding,) * 4, value=-1.0)
    windows = padded.unfold(2, kernel, stride).unfold(3, kernel, stride).flatten(4)
    won = windows.argmax(dim=-1)
    assert bool(may.gather(0, won[None])[0].all())


def test_equal_neighbours_leave_the_units_that_they_share() -> None:
    front = torch.zeros(1, 1, 4, 4)
    front[0, 0, 1, 1] = 1.0
    pool = MaxPool((3, 3), (2, 2), (1, 1), (1, 1), False)
    values = pool.forward([front], {})
    may, _ = candidates(pool, values, (4, 4), 1e-6)
    assert bool((values == 1).all())
    # All four windows have one value, and share one unit.
    assert torch.equal(may.sum(dim=0), torch.ones(1, 1, 2, 2, dtype=torch.long))


def test_values_that_are_the_same_by_chance_leave_each_unit_as_a_candidate() -> None:
    """Three windows in a row with one value: no unit lies in the first and the last, so that two winners were equal."""
    pool = MaxPool((3, 3), (2, 2), (1, 1), (1, 1), False)
    front = torch.zeros(1, 1, 8, 8)
    front[0, 0, 1, 0] = front[0, 0, 1, 2] = front[0, 0, 1, 4] = 1.0
    front += 0.01 * torch.rand(front.shape, generator=torch.Generator().manual_seed(0))
    values = pool.forward([front], {})
    values[0, 0, 0, :3] = 1.0
    may, most = candidates(pool, values, (8, 8), 1e-6)
    assert bool(may.any(dim=0).all())
    assert bool((front <= most + 0.02).all())

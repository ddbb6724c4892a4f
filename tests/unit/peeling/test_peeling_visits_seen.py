"""The number of visits by the rank of a convolution's taps."""

from __future__ import annotations

import pytest
import torch
from gradinversion.peeling.visits_seen import visits_seen


def test_the_rank_shows_whole_visits() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 32, 8, generator=draw, dtype=torch.float64)
    gradient = torch.stack(
        [torch.randn(32, 8, generator=draw, dtype=torch.float64) @ inputs[0].T for _ in range(9)], dim=-1
    )
    assert visits_seen(gradient.reshape(32, 32, 3, 3), (2, 2)) is None  # one side alone has so small a rank
    outputs = torch.randn(32, 8, generator=draw, dtype=torch.float64)
    taps = [outputs @ torch.randn(8, 8, generator=draw, dtype=torch.float64) @ inputs[0].T for _ in range(9)]
    gradient = torch.stack(taps, dim=-1).reshape(32, 32, 3, 3)
    assert visits_seen(gradient, (2, 2)) == (2, 0)
    assert visits_seen(gradient, (3, 1)) is None


@pytest.mark.parametrize("shape", [(8, 1, 3, 3), (1, 8, 3, 3), (1, 1, 3, 3)])
def test_one_channel_shows_no_rank(shape: tuple[int, ...]) -> None:
    assert visits_seen(torch.ones(shape), (2, 2)) is None


def test_channels_that_are_dead_but_for_one_show_no_rank() -> None:
    gradient = torch.zeros(8, 8, 3, 3)
    gradient[3] = torch.randn(8, 3, 3, generator=torch.Generator().manual_seed(0))
    assert visits_seen(gradient, (1, 1)) is None
    assert visits_seen(torch.zeros(8, 8, 3, 3), (1, 1)) is None


def test_a_gradient_that_is_not_finite_shows_no_rank() -> None:
    assert visits_seen(torch.full((8, 8, 3, 3), torch.nan), (1, 1)) is None

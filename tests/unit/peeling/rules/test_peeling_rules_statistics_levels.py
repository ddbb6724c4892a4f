"""Levels that no equation tells are where the least units are zero, as far as noise lets zeros be told."""

from __future__ import annotations

import pytest
import torch
from gradinversion.peeling.rules.statistics_levels import levelled
from torch import Tensor

IMAGES, CHANNELS, SIZE = 4, 40, 8
ERROR = 1e-4


@pytest.fixture
def rectified() -> Tensor:
    """Half of all units are zero, but in the first channel, which has none."""
    values = torch.randn(IMAGES, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.cat([values[:, :1].abs() + 0.05, values[:, 1:].relu()], dim=1)


@pytest.fixture
def odd_places() -> Tensor:
    """The class of odd rows and columns, as images outermost."""
    grid = torch.zeros(IMAGES, SIZE, SIZE, dtype=torch.float64)
    grid[:, 1::2, 1::2] = 1
    return grid.flatten()


def moved(values: Tensor, level: Tensor, error: float) -> Tensor:
    """With another level for each channel on the class, and noise."""
    random = torch.Generator().manual_seed(4)
    by_channel = torch.randn(1, CHANNELS, 1, 1, generator=random, dtype=torch.float64)
    noise = torch.randn(values.shape, generator=random, dtype=torch.float64)
    return values + by_channel * level.reshape(IMAGES, 1, SIZE, SIZE) + error * noise


@pytest.mark.parametrize("error", [0.0, 1e-7, ERROR, 1e-3])
def test_zeros_are_told_in_noise(rectified: Tensor, odd_places: Tensor, error: float) -> None:
    given = moved(rectified, odd_places, error)
    found, doubt = levelled(given, [odd_places], torch.full_like(given, error))
    off = (found - rectified)[:, 1:]
    assert float(off.abs().max()) <= 6 * error + 1e-12
    assert float(off.mean(dim=(0, 2, 3)).abs().max()) <= error + 1e-12
    assert bool((doubt[:, 1:] <= error).all())


def test_without_a_word_of_the_noise_no_level_is_taken_for_known(rectified: Tensor, odd_places: Tensor) -> None:
    _, doubt = levelled(moved(rectified, odd_places, 1e-3), [odd_places])
    assert int((doubt.amax(dim=(0, 2, 3)) > 1).sum()) > CHANNELS // 2


@pytest.mark.parametrize("error", [0.0, ERROR])
def test_a_channel_without_zeros_has_no_level(rectified: Tensor, odd_places: Tensor, error: float) -> None:
    given = moved(rectified, odd_places, error)
    found, doubt = levelled(given, [odd_places], torch.full_like(given, error))
    off = (found - rectified)[:, :1]
    assert bool((doubt[:, :1] >= off.abs() - 6 * error).all())
    assert float(off.abs().max()) > 0.01


def test_the_level_of_noise_is_doubted_by_as_much(rectified: Tensor, odd_places: Tensor) -> None:
    given = moved(rectified, odd_places, ERROR)
    doubt = levelled(given, [odd_places], torch.full_like(given, ERROR))[1]
    chosen = odd_places.reshape(IMAGES, 1, SIZE, SIZE).bool().expand_as(doubt)[:, 1:]
    assert torch.allclose(doubt[:, 1:][chosen], torch.tensor(ERROR, dtype=torch.float64))
    assert not bool(doubt[:, 1:][~chosen].any())

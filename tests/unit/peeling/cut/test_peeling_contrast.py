from __future__ import annotations

import pytest
import torch
from gradinversion.capture import IMAGENET
from gradinversion.peeling.cut import contrast_by_grid, photo_crops, public_photos, widest_contrast, widest_error
from torch import Tensor


def _pictures(count: int = 3) -> Tensor:
    return (255 * photo_crops(list(public_photos().values()), (16, 16), count, 3)).round().double() / 255


@pytest.mark.parametrize("factor", [0.4, 0.87, 1.0, 1.3])
def test_the_factor_brings_pixels_back_to_their_levels(factor: float) -> None:
    images = IMAGENET.apply(_pictures())
    noise = 1e-4 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = contrast_by_grid(factor * images + noise, *IMAGENET.bounds(dtype=torch.float64))
    assert found is not None
    assert found.factor * factor == pytest.approx(1, abs=1e-4)
    assert found.cost < 0.1
    assert found.typical == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("levels", [254.3, 200.0, 0.0])
def test_pixels_of_no_such_grid_tell_no_contrast(levels: float) -> None:
    pixels = _pictures()
    off = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pixels = (pixels * levels).round() / levels if levels else (pixels + off / 255).clamp(0.01, 0.99)
    assert contrast_by_grid(0.9 * IMAGENET.apply(pixels), *IMAGENET.bounds(dtype=torch.float64)) is None


def test_errors_of_half_a_level_tell_no_contrast() -> None:
    images = IMAGENET.apply(_pictures())
    noise = 0.5 / 255 / 0.225 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).double()
    assert contrast_by_grid(0.9 * images + noise, *IMAGENET.bounds(dtype=torch.float64)) is None


def test_images_of_one_value_tell_no_contrast() -> None:
    assert contrast_by_grid(torch.zeros(2, 3, 4, 4).double(), *IMAGENET.bounds(dtype=torch.float64)) is None


@pytest.mark.parametrize("factor", [0.3, 0.8, 2.0])
def test_photos_are_as_wide_as_their_range(factor: float) -> None:
    images = IMAGENET.apply(_pictures(4))
    found = widest_contrast(factor * images, *IMAGENET.bounds(dtype=torch.float64))
    assert found * factor == pytest.approx(1, abs=0.05)


def test_the_widest_contrast_lets_a_share_of_pixels_lie_beyond() -> None:
    images = torch.tensor([0.5, 1.0, -0.5, 0.25], dtype=torch.float64).reshape(1, 1, 2, 2)
    ends = -torch.ones(1, 1, 1, dtype=torch.float64), 2 * torch.ones(1, 1, 1, dtype=torch.float64)
    assert widest_contrast(images, *ends) == pytest.approx(2)
    assert widest_contrast(images, *ends, outside=0.5) == pytest.approx(4)


def test_values_below_a_black_that_is_zero_tell_no_contrast() -> None:
    images = torch.tensor([0.5, 0.0, -0.5, 0.25], dtype=torch.float64).reshape(1, 1, 2, 2)
    black, white = torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    assert widest_contrast(images, black, white) == pytest.approx(2)


@pytest.mark.parametrize("black", [0.0, -2.0])
def test_a_batch_that_tells_no_contrast_keeps_its_own(black: float) -> None:
    ends = torch.full((3, 1, 1), black), torch.full((3, 1, 1), 2.0)
    assert widest_contrast(torch.zeros(2, 3, 8, 8), *ends) == 1
    if not black:
        assert widest_contrast(-torch.rand(2, 3, 8, 8), *ends) == 1
        few = -torch.rand(2, 3, 8, 8)
        few[0, 0, 0, 0] = 0.5
        assert widest_contrast(few, *ends, outside=0.5) == pytest.approx(4)


@pytest.mark.parametrize("spread", [0.5, 0.2, 0.04, 0.01])
def test_the_error_of_the_widest_contrast_is_no_less_than_the_true_one(spread: float) -> None:
    noise = 2 * torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    bounds = IMAGENET.bounds(dtype=torch.float64)
    images = IMAGENET.apply(0.46 + 0.9 * spread * noise)
    found = widest_contrast(images, *bounds) * images
    assert widest_error(found, *bounds) >= float((found - images).norm() / images.norm())

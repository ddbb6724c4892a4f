"""Evidence of the 8-bit grid, on images that lie on it and on others that do not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradinversion.peeling.cut import photo_crops, public_photos
from gradinversion.peeling.cut.grid import GridEvidence, grid_evidence
from torch import Tensor


def crops(count: int = 4, size: int = 32) -> Tensor:
    """Photos resized in floating point: on no grid."""
    return photo_crops(list(public_photos().values()), (size, size), count, seed=3).double()


def rounded(images: Tensor, levels: float = 255) -> Tensor:
    return (images * levels).round() / levels


def off_by(images: Tensor, error: float, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=random, dtype=torch.float64)
    return (images + error * noise).clamp(0, 1)


def seen(images: Tensor, error: float) -> GridEvidence:
    return grid_evidence(images, torch.full((len(images),), error))


@pytest.mark.parametrize("error", [1e-6, 1e-5, 1e-4, 2e-4])
def test_photos_on_the_grid_are_recovered_bit_for_bit(error: float) -> None:
    images = rounded(crops())
    found = seen(off_by(images, error), error)
    assert found.on_grid.all()
    assert found.exact.all()
    assert (found.share == 1).all()
    assert (found.cost < 4 * 255 * error).all()
    assert (found.other_cost > 0.9).all()
    assert torch.equal((off_by(images, error) * 255).round(), (images * 255).round())


def test_near_half_a_step_the_grid_is_seen_and_not_every_value_is_sure() -> None:
    images = rounded(crops())
    noisy = off_by(images, 6e-4)
    found = seen(noisy, 6e-4)
    assert found.on_grid.all()
    assert not found.exact.any()
    right = ((noisy * 255).round() == (images * 255).round()).flatten(1).double().mean(dim=1)
    assert ((found.share > 0.5) & (found.share <= right + 0.01)).all()


@pytest.mark.parametrize("error", [2e-3, 1e-2])
def test_under_an_error_of_half_a_step_and_more_no_grid_is_seen(error: float) -> None:
    found = seen(off_by(rounded(crops()), error), error)
    assert not found.on_grid.any()
    assert (found.share == 0).all()


@pytest.mark.parametrize("error", [0.0, 1e-6, 1e-3, 1e-2])
def test_photos_that_were_resized_were_never_on_it(error: float) -> None:
    found = seen(off_by(crops(8), error), error)
    assert not found.on_grid.any()
    assert (found.cost > 0.8).all()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "area"])
def test_files_of_another_size_are_off_it(mode: str) -> None:
    files = rounded(crops(4, 50))
    smaller = F.interpolate(files, (32, 32), mode=mode)
    assert not seen(smaller.clamp(0, 1), 1e-6).on_grid.any()


@pytest.mark.parametrize("levels", [250.0, 254.3, 256.0, 259.5])
@pytest.mark.parametrize("brightness", [1.0, 0.1])
def test_another_grid_is_not_taken_for_it(levels: float, brightness: float) -> None:
    images = rounded(brightness * crops(), levels).clamp(0, 1)
    found = seen(off_by(images, 1e-6), 1e-6)
    assert not found.on_grid.any()
    without = grid_evidence(off_by(images, 1e-6))
    assert not without.on_grid.any()


def test_a_dark_image_on_the_grid_is_on_it() -> None:
    # The darkest has six levels.
    found = seen(off_by(rounded(0.1 * crops()), 1e-5), 1e-5)
    assert found.exact.all()


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_few_levels_are_on_it_where_they_are_levels_of_it(bits: int) -> None:
    # One of the crops has four levels of 4 bits.
    coarse = rounded(crops(), 2**bits - 1)
    assert seen(off_by(rounded(coarse), 2e-6), 2e-6).exact.all()


def test_levels_that_are_none_of_the_grid_are_off_it() -> None:
    # Sevenths of 1 are not multiples of 1/255.
    assert not seen(off_by(rounded(crops(), 7), 1e-6), 1e-6).on_grid.any()


def test_one_gray_is_too_little_to_tell() -> None:
    gray = torch.full((1, 3, 8, 8), 100 / 255, dtype=torch.float64)
    assert not seen(off_by(gray, 1e-4), 1e-4).on_grid.any()


def test_colours_tell_more_where_they_are_known_better() -> None:
    colours = torch.tensor([[17, 101, 203], [40, 41, 42]]).double()[:, :, None, None].expand(-1, -1, 8, 8) / 255
    assert seen(off_by(colours, 1e-6), 1e-6).exact.all()
    assert not seen(off_by(colours, 3e-4), 3e-4).on_grid.any()
    assert not seen(off_by(colours + 0.4 / 255, 1e-6), 1e-6).on_grid.any()


def test_black_and_white_lie_on_every_grid() -> None:
    board = torch.zeros(1, 3, 8, 8)
    board[..., ::2, ::2] = 1
    found = seen(board, 1e-9)
    assert not found.on_grid.any()
    assert float(found.cost) == float(found.other_cost) == 1


def test_saturated_parts_do_not_count_as_evidence() -> None:
    images = crops(1)
    images[:, :, 4:] = 1.0
    assert not seen(images, 1e-6).on_grid.any()
    assert seen(rounded(images), 1e-6).exact.all()


def test_a_part_that_is_not_recovered_is_not_sure() -> None:
    images = rounded(crops())
    noisy = off_by(images, 1e-5)
    noisy[:, :, :4] = off_by(images, 2e-2)[:, :, :4]
    found = grid_evidence(noisy)
    assert found.on_grid.all()
    assert not found.exact.any()
    assert ((found.share > 0.75) & (found.share < 0.95)).all()


def test_remainders_beyond_the_stated_error_contradict_it() -> None:
    noisy = off_by(rounded(crops()), 2e-4)
    assert grid_evidence(noisy).on_grid.all()
    assert seen(noisy, 5e-5).on_grid.all()
    assert not seen(noisy, 1e-6).on_grid.any()


def test_images_are_looked_at_one_by_one() -> None:
    mixed = torch.cat([rounded(crops(1)), crops(1), torch.full((1, 3, 32, 32), torch.nan)])
    found = grid_evidence(mixed.float(), torch.tensor([1e-6, 1e-6, 1e-6]))
    assert found.on_grid.tolist() == [True, False, False]
    assert found.exact.tolist() == [True, False, False]


def test_of_no_images_there_is_no_evidence() -> None:
    assert grid_evidence(torch.zeros(0, 3, 4, 4)).exact.shape == (0,)


@pytest.mark.wrong_shapes
def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="give a batch"):
        grid_evidence(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="one for each"):
        grid_evidence(torch.zeros(2, 3, 4, 4), torch.zeros(3))

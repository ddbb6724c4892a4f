"""Metrics against values by hand and against slow oracles."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gradinversion.audit import constant_images, fft2d, label_accuracy, psnr, ssim
from torch import Tensor


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(3, 3, 9, 7, generator=generator), torch.rand(3, 3, 9, 7, generator=generator)


def test_psnr_by_hand() -> None:
    true = torch.full((2, 3, 4, 4), 0.5)
    images = true.clone()
    images[0] += 0.1
    images[1, :, :2] += 0.5  # half of the pixels off by a half: mean squared error 1/8
    assert psnr(images, true).tolist() == pytest.approx([20.0, 10 * math.log10(8)], abs=1e-5)


def test_psnr_of_equal_images_is_infinite(pair: tuple[Tensor, Tensor]) -> None:
    assert psnr(pair[0], pair[0]).tolist() == [math.inf] * 3


def test_ssim_is_one_for_equal_images_and_less_otherwise(pair: tuple[Tensor, Tensor]) -> None:
    assert ssim(pair[0], pair[0]).tolist() == pytest.approx([1.0] * 3)
    assert all(value < 0.5 for value in ssim(*pair).tolist())


def test_ssim_of_two_flat_images_by_hand() -> None:
    # Without variance only the luminance term is left: (2 a b + C1) / (a^2 + b^2 + C1) with C1 = 0.01^2.
    images, true = torch.full((1, 3, 12, 12), 0.4), torch.full((1, 3, 12, 12), 0.8)
    assert ssim(images, true).item() == pytest.approx((0.64 + 1e-4) / (0.8 + 1e-4), abs=1e-6)


def test_ssim_keeps_the_images_apart(pair: tuple[Tensor, Tensor]) -> None:
    mixed = torch.cat([pair[0][:1], pair[1][1:]])
    assert ssim(mixed, pair[0]).tolist() == pytest.approx([1.0, *ssim(pair[1], pair[0]).tolist()[1:]])


@pytest.mark.parametrize("size", [1, 5])
def test_ssim_is_absent_where_its_window_does_not_fit(size: int) -> None:
    assert ssim(torch.rand(2, 3, size, size), torch.rand(2, 3, size, size)).isnan().all()


def test_ssim_of_one_image_at_the_smallest_size() -> None:
    image = torch.rand(1, 1, 6, 6)
    assert ssim(image, image).tolist() == pytest.approx([1.0])


def _slow_spectrum(channel: np.ndarray) -> np.ndarray:
    height, width = channel.shape
    spectrum = np.zeros((height, width), dtype=complex)
    for u in range(height):
        for v in range(width):
            for y in range(height):
                for x in range(width):
                    spectrum[u, v] += channel[y, x] * np.exp(-2j * np.pi * (u * y / height + v * x / width))
    return np.abs(spectrum)


def test_fft2d_against_the_definition(pair: tuple[Tensor, Tensor]) -> None:
    values = fft2d(*pair).tolist()
    for index, value in enumerate(values):
        mine = np.stack([_slow_spectrum(channel) for channel in pair[0][index].double().numpy()])
        true = np.stack([_slow_spectrum(channel) for channel in pair[1][index].double().numpy()])
        assert value == pytest.approx(np.sqrt(((mine - true) ** 2).sum()) / np.sqrt((true**2).sum()), rel=1e-6)


def test_fft2d_ignores_a_circular_shift(pair: tuple[Tensor, Tensor]) -> None:
    shifted = pair[0].roll((2, 3), (2, 3))
    assert fft2d(shifted, pair[0]).tolist() == pytest.approx([0.0] * 3, abs=1e-6)
    assert (psnr(shifted, pair[0]) < 15).all()


def test_constant_image_has_the_variance_as_its_error(pair: tuple[Tensor, Tensor]) -> None:
    floor = psnr(constant_images(pair[0]), pair[0])
    for image, value in zip(pair[0].double(), floor.tolist(), strict=True):
        variance = np.mean([channel.numpy().var() for channel in image])
        assert value == pytest.approx(-10 * math.log10(variance), rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "true", "accuracy"),
    [
        ([0, 1, 2, 3], [3, 2, 1, 0], 1.0),
        ([0, 0, 0, 1], [0, 1, 1, 1], 0.5),
        ([0, 1, 2, 3], [0, 0, 0, 0], 0.25),
        ([5, 6], [7, 8], 0.0),
    ],
)
def test_label_accuracy_counts_the_overlap_of_multisets(labels: list[int], true: list[int], accuracy: float) -> None:
    assert label_accuracy(torch.tensor(labels), torch.tensor(true)) == accuracy


def test_label_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        label_accuracy(torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long))


@pytest.mark.parametrize("metric", [psnr, ssim, fft2d])
def test_other_shapes_are_refused(metric: Callable[[Tensor, Tensor], Tensor]) -> None:
    unchecked = inspect.unwrap(metric)  # as a user runs it: without the shape checks of the test suite
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\).*\(2, 3, 8, 9\)"):
        unchecked(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 9))
    with pytest.raises(ValueError, match="batch, channel, height, width"):
        unchecked(torch.rand(3, 8, 8), torch.rand(3, 8, 8))

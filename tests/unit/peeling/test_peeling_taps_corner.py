from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradinversion.peeling.taps import factor_taps
from gradinversion.peeling.taps_corner import factor_balanced_taps
from torch import Tensor
from torch.nn.grad import conv2d_weight


def _gradient(count: int, size: tuple[int, int], kernel: int = 3, channels: int = 40) -> tuple[Tensor, Tensor]:
    """Of a convolution whose cotangents add up to zero for each channel; and its input."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, channels, *size, generator=generator, dtype=torch.float64).clamp_min(0)
    cotangents = torch.randn(count, channels, *size, generator=generator, dtype=torch.float64)
    cotangents = cotangents - cotangents.mean(dim=(0, 2, 3), keepdim=True)
    shape = (channels, channels, kernel, kernel)
    return conv2d_weight(inputs, shape, cotangents, padding=kernel // 2), inputs


@pytest.mark.parametrize(("count", "size"), [(2, (3, 3)), (1, (4, 4)), (3, (2, 4)), (2, (1, 5))])
def test_the_input_follows_up_to_a_mixing_of_the_images(count: int, size: tuple[int, int]) -> None:
    gradient, inputs = _gradient(count, size)
    found = factor_balanced_taps(gradient, count, size)
    assert found is not None
    assert found.misfit < 1e-9
    ours, true = found.inputs.flatten(1), inputs.permute(0, 2, 3, 1).flatten(1)
    mixing = torch.linalg.lstsq(ours.T, true.T).solution
    assert float((ours.T @ mixing - true.T).norm() / true.norm()) < 1e-8


def test_cotangents_that_add_up_to_zero_are_no_case_for_the_pencil() -> None:
    gradient, _ = _gradient(2, (3, 3))
    assert factor_taps(gradient, 2, (3, 3)) is None


def test_a_wider_kernel_is_taken_apart_too() -> None:
    gradient, inputs = _gradient(2, (4, 3), kernel=5)
    found = factor_balanced_taps(gradient, 2, (4, 3))
    assert found is not None
    assert found.misfit < 1e-9
    assert found.inputs.shape == (2, 12, inputs.shape[1])


def test_a_gradient_of_another_number_of_places_is_refused() -> None:
    gradient, _ = _gradient(2, (3, 3))
    assert factor_balanced_taps(gradient, 1, (3, 3)) is None
    assert factor_balanced_taps(gradient, 3, (3, 3)) is None
    assert factor_balanced_taps(gradient, 2, (1, 1)) is None
    assert factor_balanced_taps(torch.full_like(gradient, torch.nan), 2, (3, 3)) is None


def test_cotangents_that_do_not_add_up_are_refused() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs, cotangents = torch.randn(2, 2, 40, 3, 3, generator=generator, dtype=torch.float64)
    gradient = conv2d_weight(F.relu(inputs), (40, 40, 3, 3), cotangents, padding=1)
    assert factor_balanced_taps(gradient, 2, (3, 3)) is None

from __future__ import annotations

import pytest
import torch
from gradinversion.peeling.images_apart import largest_leverage, tell_apart
from gradinversion.peeling.taps import Factors
from torch import Tensor

IMAGES, PLACES, CHANNELS = 3, 16, 40


def _inputs(nested: bool) -> Tensor:
    """Never negative, half of it zero; where nested, the second image is open only where the first is."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(IMAGES, PLACES, CHANNELS, generator=random, dtype=torch.float64).clamp_min(0)
    if nested:
        inputs[1] *= inputs[0] > 0
    return inputs


def _mixed(inputs: Tensor) -> Factors:
    random = torch.Generator().manual_seed(1)
    mixing = torch.randn(IMAGES, IMAGES, generator=random, dtype=torch.float64)
    cotangents = torch.randn(IMAGES, PLACES, 7, generator=random, dtype=torch.float64)
    flat = (mixing @ inputs.flatten(1)).reshape(inputs.shape)
    back = (torch.linalg.inv(mixing).T @ cotangents.flatten(1)).reshape(cotangents.shape)
    return Factors(flat, back, leak=1e-8, misfit=1e-8)


def test_images_whose_zeros_differ_are_told_apart() -> None:
    apart = tell_apart(_mixed(_inputs(nested=False)))
    assert apart is not None
    assert largest_leverage(apart) < 0.5
    true = _inputs(nested=False).flatten(1)
    alike = torch.nn.functional.normalize(apart.inputs.flatten(1)) @ torch.nn.functional.normalize(true).T
    assert alike.amax(dim=1).tolist() == pytest.approx([1.0] * IMAGES, abs=1e-6)


def test_an_image_that_is_open_wherever_another_is_cannot_be_told_from_its_mixtures() -> None:
    assert tell_apart(_mixed(_inputs(nested=True))) is None

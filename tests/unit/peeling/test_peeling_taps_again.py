"""By how much noise moves what taps gave, against by how much it did."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradinversion.peeling.images_apart import tell_apart
from gradinversion.peeling.taps import factor_taps
from gradinversion.peeling.taps_again import apart_again
from torch import Tensor

SIZE, CHANNELS = (2, 2), 48


def _gradient(inputs: Tensor, cotangents: Tensor) -> Tensor:
    weight = torch.zeros(CHANNELS, CHANNELS, 3, 3, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(F.conv2d(inputs, weight, padding=1), weight, cotangents)[0]


def _errors(noise: float, small: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """True errors of inputs and cotangents, and the stated ones, in the order of the true images."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3, CHANNELS, *SIZE, generator=random, dtype=torch.float64).clamp_min(0)
    cotangents = torch.randn(3, CHANNELS, *SIZE, generator=random, dtype=torch.float64)
    cotangents[2] *= small
    gradient = _gradient(inputs, cotangents)
    off = torch.randn(gradient.shape, generator=random, dtype=torch.float64)
    gradient = gradient + noise * gradient.square().mean().sqrt() * off
    factors = factor_taps(gradient, 3, SIZE)
    assert factors is not None
    apart = tell_apart(factors)
    assert apart is not None
    own, theirs = apart_again(gradient, apart, 3, SIZE)
    length = inputs.flatten(1).norm(dim=1)
    true_inputs, true_cotangents = (
        value.flatten(2).transpose(1, 2).flatten(1) for value in (inputs, cotangents * length[:, None, None, None])
    )
    true_inputs = true_inputs / length[:, None]
    found, across = apart.inputs.flatten(1), apart.cotangents.flatten(1)
    order = torch.cdist(true_inputs, found).argmin(dim=1)
    missed = (found[order] - true_inputs).norm(dim=1)
    missed_across = (across[order] - true_cotangents).norm(dim=1) / true_cotangents.norm(dim=1)
    return missed, missed_across, own[order], theirs[order]


@pytest.mark.parametrize("noise", [1e-7, 1e-5, 1e-4])
@pytest.mark.parametrize("seed", [0, 1])
def test_noise_moves_as_much_as_is_stated(noise: float, seed: int) -> None:
    missed, across, own, theirs = _errors(noise, 1.0, seed)
    assert bool((missed < 5 * own).all())
    assert bool((across < 5 * theirs).all())
    assert float(own.max()) < 100 * noise


def test_the_cotangent_of_an_image_that_adds_little_is_known_less_well() -> None:
    _, across, _, theirs = _errors(1e-6, 0.01)
    assert bool((across < 5 * theirs).all())
    assert float(theirs[2]) > 20 * float(theirs[0])

"""Factors of taps where entries of the gradient are not all known as well."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradinversion.peeling.images_apart import tell_apart
from gradinversion.peeling.taps import Factors, factor_taps
from gradinversion.peeling.taps_again import apart_again
from gradinversion.peeling.taps_weighted import WeightedTaps, fits_weighted
from torch import Tensor

SIZE, CHANNELS, NOISE = (2, 2), 32, 1e-5


def _case(seed: int) -> tuple[Tensor, WeightedTaps]:
    """Inputs, and a gradient whose entries are off by as much as weights spread around zero are when rounded."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3, CHANNELS, *SIZE, generator=random, dtype=torch.float64).clamp_min(0)
    cotangents = torch.randn(3, CHANNELS, *SIZE, generator=random, dtype=torch.float64)
    weight = torch.zeros(CHANNELS, CHANNELS, 3, 3, dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(F.conv2d(inputs, weight, padding=1), weight, cotangents)[0]
    spread = torch.randn(gradient.shape, generator=random, dtype=torch.float64).abs().clamp_min(1e-3)
    deviation = NOISE * float(gradient.square().mean().sqrt()) * spread
    gradient = gradient + deviation * torch.randn(gradient.shape, generator=random, dtype=torch.float64)
    return inputs, WeightedTaps(gradient, deviation, 3, SIZE)


def _factors(taps: WeightedTaps) -> Factors:
    found = factor_taps(taps.gradient, taps.image_count, taps.size)
    assert found is not None
    return found


def _polished(taps: WeightedTaps) -> Factors:
    found = taps.polished(_factors(taps))
    assert found is not None
    return found


def _off(factors: Factors, inputs: Tensor) -> float:
    """Of each image's input outside what the factors span; how images are mixed is open."""
    true = inputs.flatten(2).transpose(1, 2).flatten(1).T
    basis = torch.linalg.qr(factors.inputs.flatten(1).T)[0]
    return float((true - basis @ (basis.T @ true)).norm() / true.norm())


@pytest.mark.parametrize("seed", [0, 1])
def test_entries_that_are_known_best_tell_most(seed: int) -> None:
    inputs, taps = _case(seed)
    before = _factors(taps)
    after = _polished(taps)
    assert _off(after, inputs) < 0.4 * _off(before, inputs)
    assert after.misfit < 0.3 * before.misfit


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_stated_is_what_they_are_off_by(seed: int) -> None:
    inputs, taps = _case(seed)
    apart = tell_apart(_polished(taps))
    assert apart is not None
    own, across = apart_again(taps.gradient, apart, 3, SIZE, weighted=taps)
    true = inputs.flatten(2).transpose(1, 2).flatten(1)
    true = true / true.norm(dim=1, keepdim=True)
    found = apart.inputs.flatten(1)
    missed = torch.cdist(true, found, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1).sort().values
    stated = own.sort().values
    assert bool((missed < 5 * stated).all())
    assert bool((stated < 20 * missed).all())
    assert bool((across < 100 * NOISE).all())


def test_deviations_that_are_no_numbers_make_nothing_better() -> None:
    _, taps = _case(0)
    spoilt = WeightedTaps(taps.gradient, torch.full_like(taps.deviation, torch.nan), 3, SIZE)
    assert spoilt.polished(_factors(taps)) is None


@pytest.mark.parametrize("share", [0.01, 0.1, 10.0, 100.0])
def test_deviations_that_are_not_those_of_the_noise_are_not_counted_by(share: float) -> None:
    """Of a delta in half precision, or defended: the same noise, told so many times as large."""
    _, taps = _case(0)
    wrong = WeightedTaps(taps.gradient, share * taps.deviation, 3, SIZE)
    assert wrong.polished(_factors(wrong)) is None


def test_noise_that_all_entries_have_alike_is_seen() -> None:
    """Counted by the rounding of the weights alone, entries would make the factors worse."""
    _, taps = _case(0)
    random = torch.Generator().manual_seed(1)
    alike = 10 * NOISE * taps.gradient.square().mean().sqrt()
    noisy = taps.gradient + alike * torch.randn(taps.gradient.shape, generator=random, dtype=torch.float64)
    defended = WeightedTaps(noisy, taps.deviation, 3, SIZE)
    assert defended.polished(_factors(defended)) is None


@pytest.mark.parametrize(("places", "fits"), [(64, True), (256, True), (512, False)])
def test_the_preconditioner_has_a_bound(places: int, fits: bool) -> None:
    assert fits_weighted(places, 512, 512) is fits

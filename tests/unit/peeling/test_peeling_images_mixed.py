"""By how much images are stated to be mixed, against by how much they are."""

from __future__ import annotations

import pytest
import torch
from gradinversion.peeling.images_apart import without_others
from gradinversion.peeling.images_mixed import mixing_errors, mixing_variances
from torch import Tensor

IMAGES, UNITS, OUTPUTS = 3, 400, 40


def _alike(seed: int, units: int = UNITS) -> tuple[Tensor, Tensor]:
    """Images that differ in few units and by little, as behind random weights; and which units are shut."""
    random = torch.Generator().manual_seed(seed)
    common = torch.randn(units, generator=random, dtype=torch.float64)
    inputs = (common + 0.1 * torch.randn(IMAGES, units, generator=random, dtype=torch.float64)).clamp_min(0)
    inputs = inputs / inputs.norm(dim=1, keepdim=True)
    return inputs, inputs == 0


def _errors(inputs: Tensor, taken: Tensor, noise: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """True errors by mixing, of inputs and cotangents, and the stated ones, where these units were taken for shut."""
    random = torch.Generator().manual_seed(100 + seed)
    cotangents = torch.randn(IMAGES, OUTPUTS, generator=random, dtype=torch.float64)
    cotangents[1] *= 0.1
    rows = inputs + noise * inputs[0].square().mean().sqrt() * torch.randn(
        inputs.shape, generator=random, dtype=torch.float64
    )
    mixing = without_others(rows, taken)
    found, across = mixing @ rows, torch.linalg.inv(mixing).T @ cotangents
    length = found.norm(dim=1, keepdim=True)
    found, across = found / length, across * length
    own, theirs = mixing_errors(found, across, taken)
    whole = mixing @ inputs
    true = (whole / whole.norm(dim=1, keepdim=True) - inputs).norm(dim=1)
    return true, (across - cotangents).norm(dim=1) / cotangents.norm(dim=1), own, theirs


def test_it_is_what_leaving_out_each_unit_moves() -> None:
    inputs, taken = _alike(0)
    random = torch.Generator().manual_seed(7)
    inputs = inputs + 1e-4 * torch.randn(inputs.shape, generator=random, dtype=torch.float64)
    whole = without_others(inputs, taken)
    expected = torch.zeros(IMAGES, IMAGES, IMAGES, dtype=torch.float64)
    for image in range(IMAGES):
        for unit in taken[image].nonzero().flatten():
            fewer = taken.clone()
            fewer[image, unit] = False
            move = (without_others(inputs, fewer) - whole)[image]
            expected[image] += torch.outer(move, move)
    torch.testing.assert_close(mixing_variances(inputs, taken), expected, rtol=1e-6, atol=1e-18)


@pytest.mark.parametrize("seed", range(4))
def test_an_open_unit_that_was_taken_for_shut_is_stated(seed: int) -> None:
    inputs, shut = _alike(seed)
    # The weakest open units of the last image, as where the noise is taken for higher than it is.
    taken = shut.clone()
    for unit in inputs[2].masked_fill(shut[2], 1.0).argsort()[:3]:
        taken[2, unit] = True
    true, across, own, theirs = _errors(inputs, taken, 1e-6, seed)
    assert float(across.max()) > 1e-3
    assert bool((true < 10 * own).all()), (true, own)
    assert bool((across < 10 * theirs).all()), (across, theirs)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [1e-7, 1e-4])
def test_noise_alone_states_no_more_than_it_does(noise: float, seed: int) -> None:
    # So many that none decides alone: then its part in the noise cannot be told from the others'.
    inputs, shut = _alike(seed, 10 * UNITS)
    true, across, own, theirs = _errors(inputs, shut, noise, seed)
    assert bool((true < 10 * own).all())
    assert bool((across < 10 * theirs).all())
    assert float(own.max()) < 5 * float(true.max())
    assert float(theirs.max()) < 5 * float(across.max())


def test_one_image_has_no_others() -> None:
    inputs = torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64)
    own, theirs = mixing_errors(inputs, torch.ones(1, 2, dtype=torch.float64), inputs == 0)
    assert own.tolist() == theirs.tolist() == [0.0]

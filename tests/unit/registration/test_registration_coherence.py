"""The Wiener consensus against its definition, and what it must never do."""

from __future__ import annotations

import pytest
import torch
from gradinversion.registration import RegistrationConfig, register
from gradinversion.registration.coherence import _contrasts, _inverse, _transform, shrink_unshared
from gradinversion.registration.contrast import blur
from scipy.fft import dctn

EQUAL = torch.full((8,), 1 / 8)


def scene(size: int, channels: int = 3) -> torch.Tensor:
    """A smooth random picture `(1, C, H, W)` with contrast of about 1."""
    soft = blur(torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0)), size / 20)
    return soft / soft.std()


def with_noise(truth: torch.Tensor, noise: float, seeds: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return truth + noise * torch.randn(seeds, *truth.shape, generator=generator)


@pytest.mark.parametrize(("shape", "step"), [((2, 3, 8, 8), 2), ((1, 1, 33, 21), 2), ((1, 3, 100, 98), 4)])
def test_patches_give_the_image_back(shape: tuple[int, ...], step: int) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_inverse(_transform(images, step), images, step), images, atol=1e-5, rtol=1e-5)


def test_coefficients_are_the_cosine_transform() -> None:
    image = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    coefficients = _transform(image, 4)[0, 0]  # 4 px are repeated at each border: patch 6 starts at pixel (0, 0)
    expected = dctn(image[0, 0, :8, :8].numpy(), norm="ortho").reshape(-1)
    torch.testing.assert_close(coefficients[:, 6], torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.2, 0.2, 0.2, 0.2, 0.2], [0.1, 0.2, 0.7]])
def test_contrasts_see_nothing_shared_and_as_much_noise_as_the_mean(weights: list[float]) -> None:
    share = torch.tensor(weights)
    rows = _contrasts(share)
    assert rows.sum(1).abs().max() < 1e-6
    torch.testing.assert_close(rows.norm(dim=1), share.norm().expand(len(rows)))


@pytest.mark.parametrize(("size", "noise"), [(32, 0.2), (64, 1.0), (128, 0.5)])
def test_independent_noise_is_lowered(size: int, noise: float) -> None:
    truth = scene(size)
    candidates = with_noise(truth, noise)
    mean = candidates.mean(0)
    found = shrink_unshared(mean, candidates, EQUAL)
    assert (found - truth).square().mean() < 0.7 * (mean - truth).square().mean()


def test_what_all_seeds_share_is_kept() -> None:
    detail = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    candidates = with_noise(detail, 0.01)
    found = shrink_unshared(candidates.mean(0), candidates, EQUAL)
    assert (found - detail).square().mean() <= 1.05 * (candidates.mean(0) - detail).square().mean()
    same = detail.expand(8, -1, -1, -1, -1)
    torch.testing.assert_close(shrink_unshared(detail, same, EQUAL), detail, atol=1e-5, rtol=1e-5)


def test_scale_offset_and_order_of_equal_terms_do_not_matter() -> None:
    candidates = with_noise(scene(32), 0.3)
    found = shrink_unshared(candidates.mean(0), candidates, EQUAL)
    scaled = 5 * candidates - 3
    again = shrink_unshared(scaled.mean(0), scaled, EQUAL)
    torch.testing.assert_close((again + 3) / 5, found, atol=1e-4, rtol=1e-4)


def test_one_seed_stays_as_it_is() -> None:
    image = scene(16)
    assert shrink_unshared(image, image[None], torch.ones(1)) is image


def test_register_takes_it_as_a_consensus() -> None:
    truth = scene(32)
    candidates = with_noise(truth, 0.5)
    errors = {
        kind: float((register(candidates, config=RegistrationConfig(consensus=kind)).images - truth).square().mean())
        for kind in ("mean", "wiener")
    }
    assert errors["wiener"] < 0.8 * errors["mean"]

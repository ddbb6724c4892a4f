"""The Wiener consensus against its definition, and what it must never do."""

from __future__ import annotations

import pytest
import torch
from gradinversion.registration import RegistrationConfig, register
from gradinversion.registration.coherence import _contrasts, _inverse, _transform, disagreement, shrink_unshared
from gradinversion.registration.consensus import average
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


@pytest.mark.parametrize("weights", [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]])
def test_the_disagreement_is_the_deviation_of_the_mean_over_its_contrast(weights: list[float]) -> None:
    share, truth = torch.tensor(weights), scene(64)
    candidates = with_noise(truth, 0.3, seeds=4)
    mean = (share[:, None, None, None, None] * candidates).sum(0)
    contrast = (truth - truth.mean(dim=(-2, -1), keepdim=True)).square().mean().sqrt()
    expected = float(0.3 * share.norm() / contrast)
    assert float(disagreement(mean, candidates, share)) == pytest.approx(expected, rel=0.1)
    assert float(disagreement(mean, truth.expand_as(candidates), share)) < 1e-5


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-3, 0.01, 0.05, 0.2, 1.0])
def test_the_default_is_never_the_worse_rule_by_more_than_a_tenth_of_a_decibel(noise: float) -> None:
    truth = scene(48)
    candidates = with_noise(truth, noise) + 0.03 * with_noise(0 * truth, 1.0, seeds=1)
    errors = {
        kind: float((average(candidates, None, EQUAL, kind) - truth).square().mean())
        for kind in ("huber", "wiener", "auto")
    }
    assert errors["auto"] <= 10**0.01 * min(errors["huber"], errors["wiener"])


def test_the_rule_is_chosen_image_by_image() -> None:
    truth = scene(32)
    both = torch.cat([with_noise(truth, 1e-4), with_noise(truth, 0.5)], dim=1)
    found, huber, wiener = (average(both, None, EQUAL, kind) for kind in ("auto", "huber", "wiener"))
    assert torch.equal(found[0], huber[0])
    assert not torch.equal(found[1], huber[1])
    torch.testing.assert_close(found[1], wiener[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seeds", [1, 2])
def test_of_two_seeds_the_default_is_the_mean(seeds: int) -> None:
    candidates, equal = with_noise(scene(32), 0.5, seeds), torch.full((seeds,), 1 / seeds)
    torch.testing.assert_close(average(candidates, None, equal, "auto"), candidates.mean(0))

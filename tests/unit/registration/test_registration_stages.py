"""Each stage against a known warp or a naive oracle."""

from __future__ import annotations

import math

import pytest
import torch
from gradinversion.registration.agreement import agreement_with_others, correlation, others_mean
from gradinversion.registration.coarse import HOMOGRAPHY, TRANSLATION, keep_better, phase_start, refine
from gradinversion.registration.consensus import average
from gradinversion.registration.contrast import blur, gradients, gray, level_sizes, local_contrast, resize
from gradinversion.registration.fine import refine_flow
from gradinversion.registration.target import Target, robust_weight
from gradinversion.registration.warp import base_grid, homography_from_corners, homography_grid, sample, transform

CORNERS = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def texture(size: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    """Smooth random images `(count, size, size)` with contrast of about 1."""
    noise = torch.randn(count, size, size, generator=torch.Generator().manual_seed(seed))
    return local_contrast(blur(noise, size / 20))


def target_of(image: torch.Tensor, seeds: int, standing: torch.Tensor | None = None) -> Target:
    """A target whose other candidates show one image; ``standing`` is what the candidates themselves show so far."""
    target = Target(image.expand(seeds, -1, -1, -1), torch.ones(seeds, *image.shape), torch.ones(seeds) / seeds)
    if standing is not None:
        target.warped = standing
    return target


def test_target_compares_with_the_others_alone() -> None:
    images = texture(16, 6).reshape(3, 2, 16, 16)
    weights = torch.tensor([0.2, 0.3, 0.5])
    target = Target(images, torch.ones_like(images), weights)
    expected = (0.2 * images[0] + 0.5 * images[2]) / 0.7
    torch.testing.assert_close(target.others[1], expected)


def test_jacobian_is_the_derivative_of_the_warped_target() -> None:
    image = blur(texture(64), 2.0)
    jacobian = target_of(image, 2).jacobian(HOMOGRAPHY)[0].reshape(8, 64, 64)
    for entry in HOMOGRAPHY:
        values = []
        for sign in (1, -1):
            change = torch.eye(3).flatten()
            change[entry] += sign * 0.01
            values.append(sample(image[None], homography_grid(change.reshape(1, 3, 3), 64, 64))[0, 0])
        numeric = (values[0] - values[1]) / 0.02
        inner = (slice(8, -8), slice(8, -8))
        assert correlation(jacobian[entry][inner], numeric[inner], torch.ones(48, 48)) > 0.99
        assert (jacobian[entry][inner].norm() / numeric[inner].norm() - 1).abs() < 0.05


def test_compare_finds_the_gain() -> None:
    image = texture(32)
    residual, _, gain = target_of(image, 2).compare(0.5 * image.expand(2, 1, 32, 32), torch.ones(2, 1, 32, 32))
    torch.testing.assert_close(gain.flatten(), torch.full((2,), 0.5))
    assert residual.abs().max() < 1e-5


def test_robust_weights_fall_with_the_residual() -> None:
    residual = torch.full((1, 10, 10), 0.1)
    residual[0, 0, 0] = 10.0
    visible = torch.ones_like(residual)
    visible[0, 9, 9] = 0.0
    weight = robust_weight(residual, visible)
    assert weight[0, 0, 0] < 0.1 * weight[0, 5, 5]
    assert weight[0, 9, 9] == 0


def test_phase_start_finds_a_whole_shift_and_keeps_identity_for_noise() -> None:
    image = texture(48)
    moving = torch.stack([torch.roll(image, (5, -3), (1, 2)), image])
    start = phase_start(moving, target_of(image, 2, moving), 0.15)
    torch.testing.assert_close(start[0, 0, :2, 2], torch.tensor([-3.0, 5.0]) * 2 / 48)
    assert torch.equal(start[1, 0], torch.eye(3))
    noise = torch.randn(2, 1, 48, 48, generator=torch.Generator().manual_seed(1))
    assert torch.equal(phase_start(noise, target_of(image, 2, noise), 0.15), torch.eye(3).repeat(2, 1, 1, 1))


def test_phase_start_looks_no_further_than_allowed() -> None:
    image = texture(48)
    start = phase_start(torch.roll(image, 12, 2).expand(2, 1, 48, 48), target_of(image, 2), 0.1)
    assert start[0, 0, :2, 2].abs().max() <= 2 * 0.1 + 1e-6


def test_refine_recovers_a_homography() -> None:
    moved = CORNERS + torch.tensor([[0.05, 0.02], [-0.03, 0.04], [0.02, -0.05], [0.04, 0.03]])
    truth = homography_from_corners(CORNERS, moved[None])[:, None]
    image = texture(64)
    moving = sample(image[:, None, None], homography_grid(torch.linalg.inv(truth), 64, 64))[:, :, 0]
    found = refine(torch.eye(3).repeat(2, 1, 1, 1), moving.expand(2, 1, 64, 64), target_of(image, 2), HOMOGRAPHY, 12)
    error = (transform(found[0, 0], CORNERS) - moved).norm(dim=-1) * 32
    assert error.max() < 0.25


def test_refine_moves_only_the_free_entries() -> None:
    image = texture(32)
    moving = torch.roll(image, 1, 2).expand(2, 1, 32, 32)
    found = refine(torch.eye(3).repeat(2, 1, 1, 1), moving, target_of(image, 2), TRANSLATION, 6)[0, 0]
    assert torch.equal(found[:2, :2], torch.eye(2))
    assert found[0, 2] == pytest.approx(2 / 32, abs=0.02)


def test_keep_better_prefers_the_likelier_warp() -> None:
    image = texture(32)
    identity = torch.eye(3).repeat(2, 1, 1, 1)
    shifted = identity.clone()
    shifted[..., 0, 2] = 4 * 2 / 32
    moving = torch.stack([image, torch.roll(image, 4, 2)])
    kept = keep_better(shifted, identity, moving, target_of(image, 2, moving))
    assert torch.equal(kept[0], identity[0])
    assert torch.equal(kept[1], shifted[1])


def test_refine_flow_recovers_a_smooth_displacement() -> None:
    size = 96
    image = texture(size)
    base = base_grid(size, size, image)
    bump = 0.05 * torch.exp(-(base**2).sum(-1) / 0.3)
    truth = torch.stack([bump, -bump], dim=-1)
    moving = sample(image[None], (base - truth)[None]).expand(2, 1, size, size)
    found = refine_flow(torch.eye(3).repeat(2, 1, 1, 1), moving, target_of(image, 2))
    middle = found.shape[2] // 2
    identity_error = 0.05
    assert (found[0, 0, middle, middle] - truth[size // 2, size // 2]).abs().max() < 0.3 * identity_error


def test_gray_level_and_gradients() -> None:
    assert level_sizes(224, 224, 112) == [(14, 14), (28, 28), (56, 56), (112, 112)]
    assert level_sizes(8, 8, 112) == [(8, 8)]
    assert level_sizes(32, 64, 112) == [(16, 32), (32, 64)]
    one = torch.rand(2, 1, 8, 8)
    assert gray(one) is one
    torch.testing.assert_close(gray(one.expand(2, 3, 8, 8)), one, atol=1e-3, rtol=1e-3)
    assert resize(one, (8, 8)) is one
    across, down = gradients(base_grid(16, 16, one)[..., 0][None])
    torch.testing.assert_close(across[:, :, 1:-1], torch.ones(1, 16, 14))
    assert down.abs().max() == 0


def test_local_contrast_ignores_gain_and_offset() -> None:
    image = texture(32)
    torch.testing.assert_close(local_contrast(7 * image - 40), local_contrast(image), atol=1e-3, rtol=1e-3)
    assert local_contrast(torch.full((1, 16, 16), 0.7)).abs().max() == 0


def test_others_mean_and_agreement_against_loops() -> None:
    images = texture(12, 8).reshape(4, 2, 12, 12)
    visible = (torch.rand(4, 2, 12, 12, generator=torch.Generator().manual_seed(2)) > 0.2).float()
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = others_mean(images, visible, weights)
    for i in range(4):
        share = weights[:, None, None, None] * visible.clamp_min(1e-3)
        share[i] = 0
        torch.testing.assert_close(found[i], (share * images).sum(0) / share.sum(0), atol=1e-4, rtol=1e-3)
    pearson = torch.corrcoef(torch.stack([images[0, 0].flatten(), images[1, 0].flatten()]))[0, 1]
    torch.testing.assert_close(correlation(images[0, 0], images[1, 0], torch.ones(12, 12)), pearson, atol=1e-4, rtol=0)
    assert agreement_with_others(images[:1], visible[:1], weights[:1]).tolist() == [[1.0, 1.0]]


def test_average_is_the_weighted_mean_or_huber() -> None:
    images = torch.rand(5, 2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2])
    expected = (weights[:, None, None, None, None] * images).sum(0)
    torch.testing.assert_close(average(images, None, weights, "mean"), expected)
    clean = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    candidates = clean.repeat(5, 1, 1, 1, 1) + 0.01 * torch.randn(5, 1, 1, 6, 6)
    candidates[2, 0, 0, 3, 3] += 5.0
    equal = torch.full((5,), 0.2)
    spoiled = (average(candidates, None, equal, "mean") - clean)[0, 0, 3, 3]
    robust = (average(candidates, None, equal, "huber") - clean)[0, 0, 3, 3]
    assert spoiled > 0.9
    assert robust < 0.5 * spoiled


def test_average_of_equal_candidates_and_unseen_pixels() -> None:
    same = torch.rand(1, 1, 1, 4, 4).repeat(4, 1, 1, 1, 1)
    assert torch.equal(average(same, None, torch.full((4,), 0.25), "huber"), same[0])
    visible = torch.ones(4, 1, 4, 4)
    visible[0, 0, 0, 0] = 0
    images = same.clone()
    images[0, 0, 0, 0, 0] = 100.0
    assert abs(float(average(images, visible, torch.full((4,), 0.25), "mean")[0, 0, 0, 0] - same[0, 0, 0, 0, 0])) < 0.1
    nothing = torch.zeros(4, 1, 4, 4)
    assert math.isfinite(float(average(images, nothing, torch.full((4,), 0.25), "mean").sum()))

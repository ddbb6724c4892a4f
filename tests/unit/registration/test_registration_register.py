from __future__ import annotations

import logging

import pytest
import torch
from gradinversion.refusal import ConfigError
from gradinversion.registration import Consensus, RegistrationConfig, RegistrationError, register
from gradinversion.registration.config import CONSENSUS
from gradinversion.registration.consensus import average
from gradinversion.registration.contrast import blur
from gradinversion.registration.fine import refine_flow
from gradinversion.registration.warp import base_grid, homography_from_corners, homography_grid, sample

CORNERS = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def scenes(count: int, size: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures in [0, 1]."""
    noise = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))
    soft = blur(noise, size / 24)
    return (0.5 + 0.2 * soft / soft.std()).clamp(0, 1)


def warped(
    images: torch.Tensor, seeds: int, jitter: float, noise: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates under corner-jitter homographies with no shared part, and the warps `(N, B, 3, 3)`."""
    generator = torch.Generator().manual_seed(seed)
    moved = 2 * jitter * (2 * torch.rand(seeds, len(images), 4, 2, generator=generator) - 1)
    homographies = homography_from_corners(CORNERS, CORNERS + moved - moved.mean(0))
    size = images.shape[-1]
    candidates = sample(images.expand(seeds, *images.shape), homography_grid(homographies, size, size))
    return candidates + noise * torch.randn(candidates.shape, generator=generator), homographies


def endpoint_errors(displacement: torch.Tensor, homographies: torch.Tensor) -> torch.Tensor:
    """Mean error in pixels per candidate image, the border left out."""
    size = displacement.shape[-1]
    base = base_grid(size, size, displacement)
    places = base + displacement.movedim(2, -1) * 2 / size
    rows = torch.cat([places, torch.ones_like(places[..., :1])], dim=-1)
    projected = torch.einsum("nbij,nbhwj->nbhwi", homographies, rows)
    error = (projected[..., :2] / projected[..., 2:] - base).norm(dim=-1) * size / 2
    edge = size // 8
    return error[..., edge:-edge, edge:-edge].mean((-2, -1))


def psnr(images: torch.Tensor, truth: torch.Tensor) -> float:
    return float(-10 * (images - truth).square().mean().log10())


@pytest.mark.parametrize(
    ("size", "method", "gain"),
    [(32, "coarse", 1.0), (64, "coarse", 3.0), (64, "coarse_to_fine", 3.0), (160, "coarse_to_fine", 3.0)],
)
def test_known_warps_are_recovered(size: int, method: str, gain: float) -> None:
    truth = scenes(2, size)
    candidates, homographies = warped(truth, 6, 0.04, 0.03)
    consensus = register(candidates, config=RegistrationConfig(method=method))
    assert consensus.displacement is not None
    identity = endpoint_errors(torch.zeros_like(consensus.displacement), homographies)
    assert endpoint_errors(consensus.displacement, homographies).mean() < 0.35 * identity.mean()
    assert psnr(consensus.images, truth) > psnr(candidates.mean(0), truth) + gain
    assert consensus.rejected.float().mean() < 0.2


@pytest.mark.parametrize("scale", [(1.0, 0.0), (4.3, -2.1), (1e-6, 0.0), (1e6, 3e6)])
def test_the_pixel_range_does_not_matter(scale: tuple[float, float]) -> None:
    candidates, _ = warped(scenes(1, 32), 4, 0.04, 0.02)
    expected = register(candidates)
    found = register(candidates * scale[0] + scale[1])
    assert found.displacement is not None
    assert expected.displacement is not None
    torch.testing.assert_close(found.displacement, expected.displacement, atol=0.05, rtol=0)
    torch.testing.assert_close((found.images - scale[1]) / scale[0], expected.images, atol=0.01, rtol=0)


@pytest.mark.parametrize("size", [32, 64])
def test_aligned_candidates_stay(size: int) -> None:
    truth = scenes(3, size)
    candidates, homographies = warped(truth, 6, 0.0, 0.05)
    consensus = register(candidates)
    assert consensus.displacement is not None
    assert endpoint_errors(consensus.displacement, homographies).max() <= 0.2
    assert psnr(consensus.images, truth) >= psnr(candidates.mean(0), truth) - 0.05


def test_pure_noise_keeps_the_plain_mean(caplog: pytest.LogCaptureFixture) -> None:
    noise = torch.randn(6, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    config = RegistrationConfig(consensus="mean")
    with caplog.at_level(logging.INFO, logger="gradinversion.registration"):
        consensus = register(noise, config=config)
    assert bool(consensus.rejected.all())
    assert consensus.displacement is not None
    assert consensus.displacement.abs().max() == 0
    torch.testing.assert_close(consensus.images, noise.mean(0))
    assert "keeps the plain mean" in caplog.text
    assert consensus.agreement.max() < 0.2


def test_displacement_and_images_fit_together() -> None:
    candidates, _ = warped(scenes(2, 48), 4, 0.04, 0.02)
    consensus = register(candidates, config=RegistrationConfig(consensus="mean"))
    assert consensus.displacement is not None
    grid = base_grid(48, 48, candidates) + consensus.displacement.movedim(2, -1) * 2 / 48
    aligned = sample(candidates, grid, "bicubic")[..., 8:-8, 8:-8]
    torch.testing.assert_close(consensus.images[..., 8:-8, 8:-8], aligned.mean(0), atol=1e-3, rtol=1e-3)


def test_same_input_same_bits() -> None:
    candidates, _ = warped(scenes(2, 64), 4, 0.05, 0.1)
    before = candidates.clone()
    first, second = register(candidates), register(candidates)
    assert torch.equal(candidates, before)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.agreement, second.agreement)
    assert first.displacement is not None
    assert second.displacement is not None
    assert torch.equal(first.displacement, second.displacement)


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    candidates, _ = warped(scenes(3, 32), 4, 0.05, 0.05)
    together = register(candidates)
    for image in range(3):
        alone = register(candidates[:, image : image + 1])
        torch.testing.assert_close(alone.images[0], together.images[image], atol=1e-3, rtol=1e-3)


def test_method_none_is_the_plain_mean() -> None:
    candidates, _ = warped(scenes(2, 16), 3, 0.05, 0.05)
    consensus = register(candidates, config=RegistrationConfig(method="none"))
    torch.testing.assert_close(consensus.images, candidates.mean(0))
    assert consensus.displacement is None
    assert not consensus.rejected.any()


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (7, 7), (7, 40), (40, 7)])
@pytest.mark.parametrize("rule", CONSENSUS)
def test_images_too_small_to_show_a_displacement_are_averaged_as_they_stand(size: tuple[int, int], rule: str) -> None:
    candidates = torch.rand(3, 2, 3, *size, generator=torch.Generator().manual_seed(0))
    consensus = register(candidates, seeds=[5, 6, 7], config=RegistrationConfig(consensus=rule))
    torch.testing.assert_close(consensus.images, average(candidates, None, torch.ones(3) / 3, rule))
    assert consensus.displacement is not None
    assert not consensus.displacement.any()
    assert bool(consensus.rejected.all())
    assert consensus.seeds == (5, 6, 7)
    assert consensus.agreement.shape == (2,)
    assert bool(((consensus.agreement >= 0) & (consensus.agreement <= 1)).all())


def test_the_flow_runs_only_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradinversion.registration import schedule

    ran: list[int] = []

    def spy(*args: torch.Tensor) -> torch.Tensor:
        ran.append(args[1].shape[-1])
        return refine_flow(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(schedule, "refine_flow", spy)
    moved, _ = warped(scenes(1, 64), 4, 0.08, 0.02)
    still, _ = warped(scenes(1, 64), 4, 0.0, 0.02)
    small, _ = warped(scenes(1, 24), 4, 0.08, 0.02)
    register(still)
    register(small)
    register(moved, config=RegistrationConfig(method="coarse"))
    assert ran == []
    register(moved)
    assert ran == [64]


@pytest.mark.parametrize(
    "shape", [(1, 2, 3, 16, 16), (2, 1, 1, 8, 8), (3, 1, 3, 8, 40), (2, 2, 1, 33, 21), (4, 1, 3, 225, 64)]
)
def test_any_shape(shape: tuple[int, ...]) -> None:
    candidates = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    consensus = register(candidates, round=7)
    assert consensus.images.shape == shape[1:]
    assert consensus.agreement.shape == shape[1:2]
    assert consensus.rejected.shape == shape[:2]
    assert consensus.round == 7
    assert consensus.seeds == tuple(range(shape[0]))
    assert torch.isfinite(consensus.images).all()
    assert ((consensus.agreement >= 0) & (consensus.agreement <= 1)).all()


def test_one_candidate_is_its_own_consensus() -> None:
    candidate = scenes(2, 24)[None]
    consensus = register(candidate, seeds=[5])
    assert torch.equal(consensus.images, candidate[0])
    assert consensus.agreement.tolist() == [1.0, 1.0]
    assert consensus.seeds == (5,)


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0])
def test_constant_images(value: float) -> None:
    consensus = register(torch.full((4, 2, 3, 32, 32), value))
    torch.testing.assert_close(consensus.images, torch.full((2, 3, 32, 32), value))
    assert consensus.displacement is not None
    assert consensus.displacement.abs().max() == 0


def test_equal_candidates() -> None:
    truth = scenes(2, 32)
    consensus = register(truth.expand(5, -1, -1, -1, -1))
    torch.testing.assert_close(consensus.images, truth)
    assert consensus.agreement.min() > 0.999


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_bad_candidate_is_left_out_and_named(bad: float, caplog: pytest.LogCaptureFixture) -> None:
    candidates, _ = warped(scenes(2, 32), 4, 0.04, 0.02)
    spoiled = candidates.clone()
    spoiled[1, 0, 2, 5, 5] = bad
    with caplog.at_level(logging.WARNING, logger="gradinversion.registration"):
        consensus = register(spoiled, seeds=[10, 11, 12, 13])
    assert consensus.seeds == (10, 12, 13)
    assert [one.seed for one in consensus.left_out] == [11]
    assert str(consensus.left_out[0]).startswith("seed 11: its candidate holds NaN")
    assert "seed 11" in caplog.text
    assert torch.equal(consensus.images, register(candidates[[0, 2, 3]]).images)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_that_are_not_rgb_are_registered_by_their_mean_channel(channels: int) -> None:
    scene = scenes(1, 32)[:, :1].expand(-1, channels, -1, -1)
    candidates = torch.stack([scene, scene, scene + 0.01 * torch.linspace(0, 1, channels)[:, None, None]])
    consensus = register(candidates)
    assert consensus.images.shape == (1, channels, 32, 32)
    torch.testing.assert_close(consensus.images, scene, atol=0.02, rtol=0)


def test_integer_pixels_become_float() -> None:
    pixels = (255 * scenes(1, 32)).to(torch.uint8).expand(3, -1, -1, -1, -1)
    consensus = register(pixels)
    assert consensus.images.dtype == torch.float32
    torch.testing.assert_close(consensus.images, pixels[0].float(), atol=1e-3, rtol=0)


GOOD = torch.zeros(2, 1, 3, 16, 16)


@pytest.mark.wrong_shapes
@pytest.mark.parametrize(
    ("candidates", "options", "sentence"),
    [
        (torch.zeros(2, 3, 16, 16), {}, r"shape \(2, 3, 16, 16\): pass \(seeds, images, channels"),
        (torch.zeros(0, 1, 3, 16, 16), {}, "each at least 1"),
        (torch.zeros(2, 1, 3, 16, 16, dtype=torch.complex64), {}, "complex64"),
        ([torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 8, 8)], {}, "bring all seeds to one size"),
        (torch.full((2, 1, 3, 16, 16), float("nan")), {}, "no candidate can be used .*seed 0.*seed 1"),
        (GOOD, {"seeds": [1]}, "do not name 2 candidates"),
        (GOOD, {"seeds": [1, 1]}, "distinct"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(candidates: torch.Tensor, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(RegistrationError, match=sentence):
        register(candidates, **options)  # type: ignore[arg-type]


def test_bad_settings_are_named_together() -> None:
    with pytest.raises(ConfigError) as caught:
        RegistrationConfig(method="fancy", rounds=0, max_displacement=0.9)
    named = [problem.partition(":")[0] for problem in caught.value.problems]
    assert named == ["registration.method=fancy", "registration.rounds=0", "registration.max_displacement=0.9"]


def test_consensus_is_frozen() -> None:
    consensus = register(GOOD)
    assert isinstance(consensus, Consensus)
    with pytest.raises(AttributeError):
        consensus.round = 3  # type: ignore[misc]

from __future__ import annotations

import torch
from gradinversion.registration import RegistrationConfig, register
from gradinversion.registration.contrast import blur
from gradinversion.registration.mirror import mirrored


def candidates(seeds: int, noise: float) -> torch.Tensor:
    """Two images seen by each seed."""
    generator = torch.Generator().manual_seed(0)
    soft = blur(torch.randn(2, 3, 32, 32, generator=generator), 2.0)
    return soft / soft.std() + noise * torch.randn(seeds, 2, 3, 32, 32, generator=generator)


def turn(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    return torch.where(which[..., None, None, None], images.flip(-1), images)


def test_mirrored_candidates_are_found() -> None:
    which = torch.tensor([[False, True], [True, False], [False, False], [False, True], [False, False]])
    images = turn(candidates(5, 1.0), which)
    assert torch.equal(mirrored(images, torch.full((5,), 0.2)), which)


def test_the_side_with_most_weight_stays_and_a_tie_goes_to_the_first_seed() -> None:
    which = torch.tensor([[True, True], [False, False], [False, False]])
    images = turn(candidates(3, 0.3), which)
    assert torch.equal(mirrored(images, torch.tensor([0.8, 0.1, 0.1])), ~which)
    pair = mirrored(images[:2], torch.tensor([0.5, 0.5]))
    assert pair.tolist() == [[False, False], [True, True]]


def test_noise_and_constant_images_and_single_seeds_stay() -> None:
    noise = torch.randn(4, 20, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    assert mirrored(noise, torch.full((4,), 0.25)).float().mean() < 0.05
    assert not mirrored(torch.ones(4, 2, 3, 16, 16), torch.full((4,), 0.25)).any()
    assert not mirrored(candidates(1, 0.1), torch.ones(1)).any()


def test_register_mirrors_only_when_asked() -> None:
    straight = candidates(4, 0.2)
    which = torch.tensor([[False, False], [True, False], [False, True], [False, False]])
    images = turn(straight, which)
    off = register(images)
    assert off.mirrored is None
    on = register(images, config=RegistrationConfig(mirror=True))
    assert on.mirrored is not None
    assert torch.equal(on.mirrored, which)
    torch.testing.assert_close(on.images, register(straight).images)
    assert on.agreement.min() > off.agreement.max()

from __future__ import annotations

import pytest
import torch
from gradinversion.registration import RegistrationConfig, change, flow_picture, register
from gradinversion.registration.contrast import blur


def moved() -> torch.Tensor:
    noise = torch.randn(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    image = blur(noise, 2.0)
    return torch.stack([torch.roll(image, shift, -1) for shift in (-2, 0, 2)])


def test_flow_colours() -> None:
    field = torch.zeros(2, 1, 4)
    field[:, 0, 1] = torch.tensor([3.0, 0.0])
    field[:, 0, 2] = torch.tensor([-3.0, 0.0])
    picture = flow_picture(field, 3.0)
    assert picture.shape == (3, 1, 4)
    torch.testing.assert_close(picture[:, 0, 0], torch.ones(3))
    torch.testing.assert_close(picture[:, 0, 1], torch.tensor([1.0, 0.25, 0.25]))
    torch.testing.assert_close(picture[:, 0, 2], torch.tensor([0.0, 0.75, 0.75]))
    assert torch.isfinite(flow_picture(torch.zeros(2, 3, 3), 0.0)).all()


def test_change_says_what_moved() -> None:
    candidates = moved()
    consensus = register(candidates)
    found = change(candidates, consensus)
    assert torch.equal(found.before, candidates.mean(0))
    assert torch.equal(found.after, consensus.images)
    assert found.flows.shape == (3, 1, 3, 48, 48)
    assert 1.0 < found.mean_displacement[0] < 3.0
    assert found.largest_displacement >= found.mean_displacement[0]
    assert found.difference[0] > 0
    assert found.rejected == (0,)


def test_change_of_a_plain_mean_is_none() -> None:
    candidates = moved()
    found = change(candidates, register(candidates, config=RegistrationConfig(method="none")))
    assert found.mean_displacement == (0.0,)
    assert found.difference[0] == pytest.approx(0, abs=1e-6)
    assert (found.flows == 1).all()


def test_change_needs_the_candidates_that_took_part() -> None:
    candidates = moved()
    with pytest.raises(ValueError, match="2 candidates were given for a consensus of seeds"):
        change(candidates[:2], register(candidates))

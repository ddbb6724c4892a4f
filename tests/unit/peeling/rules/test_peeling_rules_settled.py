"""What the entries of a segment's input that were shut say of its errors."""

from __future__ import annotations

import pytest
import torch
from gradinversion.peeling.rules.settled import error_share, stated_deviation


def _clamped(noise: float) -> torch.Tensor:
    """Half of the entries shut, and errors on all of them."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(2, 8, 16, 16, generator=random)
    return (values.clamp_min(0) + noise * torch.randn(values.shape, generator=random)).clamp_min(0)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_entries_that_were_shut_show_that_errors_are_smaller_than_was_estimated(share: float) -> None:
    found = _clamped(1e-4)
    assert error_share(found, torch.full_like(found, 1e-4 / share)) == pytest.approx(share, rel=0.15)


def test_errors_are_never_said_to_be_larger_nor_next_to_nothing() -> None:
    found = _clamped(1e-4)
    assert error_share(found, torch.full_like(found, 1e-5)) == 1
    assert error_share(found, torch.full_like(found, 1.0)) == 0.15


def test_where_few_entries_are_zero_nothing_is_shown() -> None:
    found = _clamped(1e-4).clamp_min(1e-5)
    assert error_share(found, torch.full_like(found, 1e-2)) == 1


@pytest.mark.parametrize("bad", [0.02, 0.1, 0.3])
def test_good_places_do_not_make_the_bad_ones_look_better(bad: float) -> None:
    """Errors of 1e-2 at some of the places, and of 1e-4 at the others."""
    random = torch.Generator().manual_seed(0)
    true = torch.randn(4, 16, 32, 32, generator=random).clamp_min(0)
    scale = torch.where(torch.rand(4, 1, 32, 32, generator=random) < bad, 1e-2, 1e-4)
    found = (true + scale * torch.randn(true.shape, generator=random)).clamp_min(0)
    local = (scale * torch.randn(true.shape, generator=random)).square().mean(dim=1, keepdim=True).sqrt()
    usual = local.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    stated = stated_deviation(found, local, usual)
    off = (found - true).flatten(1).norm(dim=1)
    assert bool((stated.flatten(1).norm(dim=1) > off / 2).all())

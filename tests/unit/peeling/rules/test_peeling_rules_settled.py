"""What the entries of a segment's input that were shut say of its errors."""

from __future__ import annotations

import pytest
import torch
from gradinversion.peeling.rules.settled import error_share


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

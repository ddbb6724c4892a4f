from __future__ import annotations

import logging

import pytest
import torch
from gradinversion.registration import RegistrationConfig
from gradinversion.registration.guard import folded, no_gain, refuse, too_far
from gradinversion.registration.warp import base_grid


def still(count: int = 2) -> torch.Tensor:
    return torch.zeros(count, 1, 32, 32, 2)


def test_folds_are_seen_and_noise_is_not() -> None:
    fields = still(3)
    x = base_grid(32, 32, fields)[..., 0]
    fields[0, 0, ..., 0] = -1.5 * x  # mirrors the image
    fields[1, 0, ..., 0] = 0.3 * x
    fields[2] = 0.02 * torch.randn(1, 32, 32, 2, generator=torch.Generator().manual_seed(0))
    assert folded(fields)[:, 0].tolist() == [True, False, False]


def test_displacement_bound_is_a_share_of_the_shorter_side() -> None:
    fields = torch.zeros(2, 1, 32, 64, 2)
    fields[..., 0] = 2 * torch.tensor([4.0, 6.0])[:, None, None, None] / 64  # 4 and 6 px of 32
    assert too_far(fields, 0.15)[:, 0].tolist() == [False, True]


@pytest.mark.parametrize(
    ("after", "before", "pixels", "margin", "refused"),
    [
        (0.9, 0.5, 1024, 0.005, False),  # a clear gain
        (0.5, 0.5, 1024, 0.0, True),  # none
        (0.50, 0.49, 10**7, 0.02, True),  # certain, but under the margin
        (0.15, 0.05, 1024, 0.005, True),  # above the margin, but chance may do it
        (0.15, 0.05, 112 * 112, 0.005, False),  # on more pixels chance cannot
        (0.2, -0.9, 64, 0.005, True),  # a negative correlation before is no evidence for the warp
    ],
)
def test_no_gain(after: float, before: float, pixels: int, margin: float, refused: bool) -> None:
    assert bool(no_gain(torch.tensor(after), torch.tensor(before), pixels, margin)) is refused


def test_refuse_joins_the_rules_and_logs_them(caplog: pytest.LogCaptureFixture) -> None:
    fields = still(4)
    fields[1, ..., 0] = 1.0
    fields[2, 0, ..., 0] = -1.5 * base_grid(32, 32, fields)[..., 0]
    after = torch.tensor([[0.9], [0.9], [0.9], [0.3]])
    with caplog.at_level(logging.INFO, logger="gradinversion.registration.guard"):
        refused = refuse(fields, after, torch.full((4, 1), 0.3), RegistrationConfig())
    assert refused[:, 0].tolist() == [False, True, True, True]
    for reason in ("no photometric gain", "folded", "displacement too large"):
        assert f"1 of 4 warps refused: {reason}" in caplog.text

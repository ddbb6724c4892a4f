"""Statistics that a client sent, held against those of the batch that follow from its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import CapturedUpdate, capture_gradient
from gradinversion.peeling import PeelingConfig, recovery
from gradinversion.peeling.cut import NoCut, photo_crops, public_photos
from gradinversion.peeling.record import Contrast
from gradinversion.peeling.recovered import Recovery
from gradinversion.peeling.recovery import recover_images
from torch import Tensor, nn


class Residual(nn.Module):
    """Places 8 x 8, 4 x 4 and 2 x 2, few for their channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 64, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(64)
        self.down = nn.Conv2d(16, 64, 1, 2, bias=False)
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        value = F.relu(self.norm(self.stem(images)))
        within = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(value)))))
        return self.fc(F.relu(within + self.down(value)).mean((2, 3)))


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, CapturedUpdate]:
    model = Residual().eval()
    images = photo_crops(list(public_photos().values()), (8, 8), 3, seed=77)
    return model, capture_gradient(model, images, torch.tensor([8, 1, 5]), batch_norm="train_shared")


Change = Callable[[str, Tensor], Tensor]


def changed(update: CapturedUpdate, change: Change) -> CapturedUpdate:
    assert update.buffers is not None
    buffers = {name: one if one.dim() == 0 else change(name, one) for name, one in update.buffers.items()}
    return replace(update, buffers=buffers)


@pytest.fixture
def recovered(case: tuple[nn.Module, CapturedUpdate], monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], Recovery]:
    monkeypatch.setattr(recovery, "find_cut", lambda derivation: NoCut("not asked for"))
    return lambda change: recover_images(changed(case[1], change), case[0], PeelingConfig(operations=3e10))


def test_those_of_the_step_are_used(recovered: Callable[[Change], Recovery]) -> None:
    found = recovered(lambda name, one: one)
    assert found.steps
    assert found.statistics_off is None
    assert found.record is not None
    assert found.record.contrast is Contrast.SEEN


@pytest.mark.parametrize(
    ("change", "least", "rounded"),
    [
        (lambda name, one: torch.ones_like(one) if "var" in name else torch.zeros_like(one), 0.5, False),
        (lambda name, one: one.bfloat16().float(), 0.002, True),
    ],
    ids=["unmoved", "rounded"],
)
def test_others_are_told_from_them_and_left_out(
    recovered: Callable[[Change], Recovery], change: Change, least: float, rounded: bool
) -> None:
    found = recovered(change)
    assert found.statistics_off is not None
    assert found.statistics_off.share > least
    assert found.statistics_off.rounded == rounded
    assert found.record is not None
    # As of a client that sends none.
    assert found.record.contrast is Contrast.HIDDEN

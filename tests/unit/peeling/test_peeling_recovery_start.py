"""Features that are fewer than the pixels: what the attack starts at."""

from __future__ import annotations

import functools
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import capture_gradient
from gradinversion.peeling import PeelingConfig, decoded_start
from gradinversion.peeling.cut import descents, photo_crops, public_photos, refine
from gradinversion.peeling.recovery import recover_images
from torch import Tensor, nn

DESCENT = "descent from what the decoder makes to images that have these features"


class Narrow(nn.Module):
    """Eight features for each 4 x 4 pixels, and places of the first convolution that are more than its channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.halved = nn.Conv2d(8, 64, 2, 2)
        self.conv1 = nn.Conv2d(64, 96, 3, padding=1)
        self.conv2 = nn.Conv2d(96, 96, 3, padding=1)
        self.fc = nn.Linear(96, 10)

    def forward(self, images: Tensor) -> Tensor:
        value = F.relu(self.conv1(F.relu(self.halved(F.relu(self.stem(images))))))
        return self.fc(F.relu(self.conv2(value)).mean((2, 3)))


@pytest.mark.parametrize(
    ("operations", "fewest", "least", "mended", "fitted"),
    [
        (1e13, 100, 0.0, True, True),
        (1e10, 100, 0.0, False, True),
        (1e10, 10_000, 0.0, False, False),
        (1e13, 100, 1.0, False, False),
    ],
)
def test_features_that_are_fewer_than_the_pixels_give_a_smooth_start(
    operations: float, fewest: int, least: float, mended: bool, fitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded_start, "_EXPLAINED", least)
    monkeypatch.setattr(decoded_start, "FEWEST_STEPS", fewest)
    monkeypatch.setattr(decoded_start, "descents", lambda cut: replace(descents(cut), steps=200, most=1))
    model, told = Narrow().eval(), list[str]()
    picture = public_photos(without=("astronaut", "chelsea", "coffee", "rocket"))["motorcycle"]
    images = photo_crops([picture], (32, 32), 2, 9)
    update = capture_gradient(model, images, torch.tensor([7, 2]))
    monkeypatch.setattr(decoded_start, "refine", functools.partial(refine, steps=10))
    found = recover_images(update, model, PeelingConfig(operations=operations), tell=told.append)
    assert found.images is None
    assert found.start is not None
    assert found.start.fitted is fitted
    assert "fewer than an image has pixel values" in found.message
    assert ("smooth" in found.message) is fitted
    # Not images, but what would be nearer to them is left out.
    assert (f"A {DESCENT} would take more than peeling.operations=1e+10" in found.message) is (fewest == 10_000)
    # Where photos that were held out show that features tell little of an image, nothing is made of what they leave.
    told_little = re.search(r"of photos that were held out it explains \d+% of what they differ by", found.message)
    assert bool(told_little) is bool(least)
    assert any("network" in words and "mends" in words for words in told) is mended
    assert found.record is not None
    assert not found.record.whole
    assert found.record.photos is not None
    assert found.labels is not None
    order = torch.stack([(found.labels == label).nonzero()[0, 0] for label in (7, 2)])
    normalised = update.normalisation.apply(images)
    off = (found.start.images[order].float() - normalised).square().mean(dim=(1, 2, 3)).sqrt()
    flat = (normalised.mean((2, 3), keepdim=True) - normalised).square().mean(dim=(1, 2, 3)).sqrt()
    assert bool((off < 0.9 * flat).all())

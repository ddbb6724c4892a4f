"""Where seeds begin: at the images, where these are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradinversion.agents import AgentsConfig
from gradinversion.audit import psnr
from gradinversion.capture import capture_gradient
from gradinversion.coordinator import AttackConfig
from gradinversion.coordinator.serial_group import attack
from gradinversion.peeling import Anchor
from gradinversion.target.beginning import known_start
from gradinversion.target.preparation import prepare
from torch import Tensor, nn

LABELS = torch.tensor([7])


class Shift(nn.Module):
    """Keeps the shape and changes the numbers."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.5


def straight(shifted: bool = False) -> nn.Sequential:
    """So few places for its channels that every layer follows, with a first layer that keeps the images' shape."""
    torch.manual_seed(0)
    first: list[nn.Module] = [Shift()] if shifted else []
    layers = [*first, nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 4, 10)]
    return nn.Sequential(*layers).eval()


def _images() -> Tensor:
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _config(steps: int, **agents: float) -> AttackConfig:
    return AttackConfig(agents=AgentsConfig(count=2, iterations=steps, **agents))  # type: ignore[arg-type]


def test_images_that_peeling_found_are_the_answer_of_a_short_run() -> None:
    model, images = straight(), _images()
    found = attack(capture_gradient(model, images, LABELS), model, _config(3)).reconstruction
    assert float(psnr(found.images, images).min()) > 60
    assert any("every seed begins at them" in message for message in found.messages)
    assert not any("Gauss-Newton" in message for message in found.messages)


def test_activations_of_the_same_shape_that_are_others_are_no_start() -> None:
    model, images = straight(shifted=True), _images()
    update = capture_gradient(model, images, LABELS)
    prepared = prepare(update, model, _config(3).request)
    assert prepared.target.anchor is not None
    assert prepared.target.anchor.module == "1"
    assert prepared.target.start is None


@pytest.mark.parametrize("change", [{"one_sided": True}, {"module": "2"}])
def test_only_all_of_the_images_is_a_start(change: dict[str, object]) -> None:
    model, images = straight(), _images()
    update = capture_gradient(model, images, LABELS)
    anchor = Anchor("0", update.normalisation.apply(images), torch.zeros_like(images), False, (), 1e-6)
    start = known_start(anchor, update, model)
    assert start is not None
    assert start.is_known
    assert torch.equal(start.images, anchor.activations)
    assert known_start(replace(anchor, **change), update, model) is None  # type: ignore[arg-type]

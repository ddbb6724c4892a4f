"""Small smooth networks, updates made with them, and an objective that is a formula."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from gradinversion.capture import Normalisation, capture_gradient
from gradinversion.target import Target
from torch import Tensor, nn


def _smooth(activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, 3, 3, 1, 1), nn.BatchNorm2d(3), activation()]
    layers += [nn.Conv2d(3, 3, 3, 2, 1), nn.BatchNorm2d(3), activation(), nn.Flatten(), nn.Linear(27, 5)]
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):  # as after training
            nn.init.normal_(layer.get_buffer("running_mean"), 0, 0.2)
            nn.init.uniform_(layer.get_buffer("running_var"), 0.5, 1.5)
            layer.get_buffer("num_batches_tracked").fill_(7)
    return nn.Sequential(*layers)


@pytest.fixture
def smooth_target() -> Callable[..., tuple[Target, Tensor]]:
    """A target on a smooth network (5 px, one channel, 5 classes) and the private images, normalised."""

    def make(
        batch_norm: str = "eval",
        dtype: torch.dtype = torch.float64,
        activation: type[nn.Module] = nn.Softplus,
        batch: int = 2,
    ) -> tuple[Target, Tensor]:
        normalisation = Normalisation(mean=(0.5,), std=(0.25,))
        model = _smooth(activation).to(dtype).eval()
        images, labels = torch.rand(batch, 1, 5, 5, dtype=dtype), torch.arange(batch)
        update = capture_gradient(model, images, labels, normalisation=normalisation, batch_norm=batch_norm)
        return Target(update, model, labels), normalisation.apply(images)

    return make


class FormulaObjective:
    """What the Inverter needs of an objective, with a formula of images and call number in place of a network."""

    def __init__(self, formula: Callable[[Tensor, int], Tensor]) -> None:
        normalisation = Normalisation(mean=(0.5,), std=(0.5,))  # the box is [-1, 1]
        self.update = SimpleNamespace(image_count=2, image_shape=(1, 4, 4), normalisation=normalisation)
        self.device = torch.device("cpu")
        self.messages: list[str] = []
        self.calls = 0
        self.generator = None
        self.start = None
        self.joint_labels = False
        self.peeled = self.determined = False
        self._formula = formula

    def terms(self, images: Tensor, *rest: object) -> dict[str, Tensor]:
        value = self._formula(images, self.calls)
        self.calls += 1
        return {"gradient": value, "total": value}


@pytest.fixture
def formula_objective() -> type[FormulaObjective]:
    return FormulaObjective

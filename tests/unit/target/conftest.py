"""A client's clean update of four photos on two small networks, to which a test adds what is to be found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from gradinversion.capture import CapturedUpdate, capture_gradient, load_images, load_model
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """An update and what it was made of."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    update: CapturedUpdate

    @property
    def weights(self) -> dict[str, Tensor]:
        """The server's weights."""
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def sending(self, change: Callable[[str, Tensor], Tensor]) -> CapturedUpdate:
        """The update with each gradient changed on its way."""
        return replace(self.update, gradients={n: change(n, g) for n, g in self.update.gradients.items()})


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """``make_case(model="convnet", labels=(0, 1, 2, 3), batch_norm="eval", loss=...)`` at 32 pixels, ten classes."""

    def make(name: str = "convnet", labels: tuple[int, ...] = (0, 1, 2, 3), **options: Any) -> Case:
        model = load_model(name, 10, 32)
        images, _ = load_images("photos", len(labels), 32)
        chosen = torch.tensor(labels)
        return Case(model, images, chosen, capture_gradient(model, images, chosen, **options))

    return make

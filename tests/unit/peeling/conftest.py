"""Small networks, updates made with them, and what peeling has to find: the truth, read off the model by hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import CapturedUpdate, Normalisation, capture_gradient, client_mode
from gradinversion.peeling import Anchor
from torch import Tensor, nn

_NORMALISATION = Normalisation(mean=(0.5, 0.45, 0.4), std=(0.25, 0.25, 0.25))


@dataclass(frozen=True)
class Case:
    """A client's update, and the errors of an anchor that was peeled from it."""

    model: nn.Module
    update: CapturedUpdate
    labels: Tensor
    images: Tensor
    """Normalised, in the model's type."""

    def errors(self, anchor: Anchor) -> tuple[float, float]:
        """Relative errors of activations and cotangent against the model's own, in float64."""
        activations, cotangent = (value.double() for value in self._truth(anchor.module))
        if anchor.one_sided:
            activations = activations.clamp_min(0)
        assert anchor.activations.shape == activations.shape
        return _relative(anchor.activations, activations), _relative(anchor.cotangent, cotangent)

    def _truth(self, module: str) -> tuple[Tensor, Tensor]:
        """What enters the module, and the derivative of the loss by it, by autograd."""
        seen: list[Tensor] = []

        def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen.append(inputs[0].clone().requires_grad_() if inputs[0].is_leaf else inputs[0].clone())
            return (seen[-1].clone(),)

        handle = self.model.get_submodule(module).register_forward_pre_hook(note)
        try:
            with client_mode(self.model, self.update.batch_norm):
                loss = F.cross_entropy(self.model(self.images), self.labels)
        finally:
            handle.remove()
        (cotangent,) = torch.autograd.grad(loss, seen[0])
        return seen[0].detach(), cotangent


def _relative(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.fixture
def capture() -> Callable[..., Case]:
    """Makes a case: ``capture(model, labels, side=8, batch_norm="eval", seed=0)``."""

    def make(model: nn.Module, labels: list[int], side: int = 8, batch_norm: str = "eval", seed: int = 0) -> Case:
        model.eval()
        images = torch.rand(len(labels), 3, side, side, generator=torch.Generator().manual_seed(seed))
        update = capture_gradient(
            model, images, torch.tensor(labels), normalisation=_NORMALISATION, batch_norm=batch_norm
        )
        inputs = _NORMALISATION.apply(images.to(next(model.parameters())))
        return Case(model, update, torch.tensor(labels), inputs)

    return make

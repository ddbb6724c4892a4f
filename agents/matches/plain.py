"""The gradient of the client's loss on the whole batch."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor, nn

from ...capture import ClientLoss
from ...priors import InputStatistics
from ..objective_config import GradientLoss
from .comparison import Comparison


class Plain:
    """Implements `Match` for one step on all images, from the pixels to the loss.

    Args:
        model: Of the objective, which runs it in the client's mode.
        labels: One per image.
        loss: The client's.
        gradients: Of all parameters.
    """

    def __init__(
        self, model: nn.Module, labels: Int[Tensor, " batch"], loss: ClientLoss, gradients: Comparison
    ) -> None:
        self._model, self._labels, self._loss, self._gradients = model, labels, loss, gradients

    def terms(self, images: Tensor, labels: Tensor, statistics: InputStatistics) -> dict[str, Tensor]:
        """See `Match`."""
        return {"gradient": self._gradients.distance(self._found(images, labels, create_graph=True))}

    def observe(self, images: Tensor, statistics: InputStatistics) -> None:
        """See `Match`."""
        self._model(images)

    def gradient_loss(self, images: Tensor) -> float:
        """See `Match`."""
        found = self._found(images, self._labels, create_graph=False)
        return float(self._gradients.distance(found, GradientLoss.RELATIVE_L2))

    def _found(self, images: Tensor, labels: Tensor, create_graph: bool) -> tuple[Tensor, ...]:
        # With what the client's defence left of each image.
        loss = self._loss(self._model(images), labels, self._gradients.adaptation.image_weights)
        return self._gradients.derivatives(loss, create_graph=create_graph)

"""The gradient of the client's loss on the whole batch."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor, nn

from ...capture import ClientLoss
from ...priors import InputStatistics
from ..in_parts import Pieces
from ..objective_config import GradientLoss
from .comparison import Comparison


class Plain:
    """Implements `Separable` for one step on all images, from the pixels to the loss.

    Args:
        model: Of the objective, which runs it in the client's mode.
        labels: One per image.
        loss: The client's.
        gradients: Of all parameters.
    """

    def __init__(
        self, model: nn.Module, labels: Int[Tensor, " batch"], loss: ClientLoss, gradients: Comparison
    ) -> None:
        self._model, self._loss, self._gradients = model, loss, gradients
        self.labels = labels
        """One per image."""

    def terms(self, images: Tensor, labels: Tensor, statistics: InputStatistics) -> dict[str, Tensor]:
        """See `Match`."""
        return self.terms_of(self.pieces(images, labels, slice(None), statistics, create_graph=True))

    def observe(self, images: Tensor, statistics: InputStatistics) -> None:
        """See `Match`."""
        self._model(images)

    def gradient_loss(self, images: Tensor) -> float:
        """See `Match`."""
        return self.gradient_loss_of(self.gradients(images, slice(None)))

    def pieces(
        self, images: Tensor, labels: Tensor, rows: slice, statistics: InputStatistics, create_graph: bool
    ) -> Pieces:
        """See `Separable`."""
        return Pieces(self._found(images, labels, rows, create_graph), ())

    def terms_of(self, pieces: Pieces) -> dict[str, Tensor]:
        """See `Separable`."""
        return {"gradient": self._gradients.distance(pieces.summed)}

    def gradient_loss_of(self, pieces: Pieces) -> float:
        """As `gradient_loss`, from the pieces of the whole batch."""
        return float(self._gradients.distance(pieces.summed, GradientLoss.RELATIVE_L2))

    def gradients(self, images: Tensor, rows: slice) -> Pieces:
        """The gradients of some images, without a graph; see `pieces`."""
        return Pieces(self._found(images, self.labels, rows, create_graph=False), ())

    def _found(self, images: Tensor, labels: Tensor, rows: slice, create_graph: bool) -> tuple[Tensor, ...]:
        # With what the client's defence left of each image.
        weights = self._gradients.adaptation.image_weights
        loss = self._loss(self._model(images), labels[rows], None if weights is None else weights[rows])
        if len(images) < len(labels):
            loss = self._loss.share(len(images), len(labels)) * loss
        return self._gradients.derivatives(loss, create_graph=create_graph)

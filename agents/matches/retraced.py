"""A weight delta of several local steps, made again by the candidate batch."""

from __future__ import annotations

from torch import Tensor

from ...priors import InputStatistics
from ..local_steps import LocalSteps
from ..objective_config import GradientLoss
from .comparison import Comparison


class Retraced:
    """Implements `Match` for the mean gradient of a client's local steps.

    Args:
        steps: The client's, which know the labels: they are not optimised with the images of several steps.
        gradients: Of all parameters, the mean over the steps.
    """

    def __init__(self, steps: LocalSteps, gradients: Comparison) -> None:
        self._steps, self._gradients = steps, gradients

    def terms(self, images: Tensor, labels: Tensor, statistics: InputStatistics) -> dict[str, Tensor]:
        """See `Match`."""
        found = self._steps.run(images, create_graph=True, statistics=statistics)
        return {"gradient": self._gradients.distance(found)}

    def observe(self, images: Tensor, statistics: InputStatistics) -> None:
        """See `Match`."""
        self._steps.run(images, create_graph=True, statistics=statistics)

    def gradient_loss(self, images: Tensor) -> float:
        """See `Match`."""
        found = self._steps.run(images, create_graph=False)
        return float(self._gradients.distance(found, GradientLoss.RELATIVE_L2))

"""What the objective needs of a match."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from ...priors import InputStatistics


class Match(Protocol):
    """Holds a candidate batch against the captured update. The model must be in the client's mode."""

    def terms(
        self,
        images: Float[Tensor, "batch channel height width"],
        labels: Tensor,
        statistics: InputStatistics,
    ) -> dict[str, Float[Tensor, ""]]:
        """The distances to what was captured, by the name of the term; the derivative by the images can be taken.

        Args:
            images: Normalised pixels.
            labels: One per image, or the probability of each class.
            statistics: Entered around this call; holds those of the whole update afterwards.
        """

    def observe(
        self,
        images: Float[Tensor, "batch channel height width"],
        statistics: InputStatistics,
    ) -> None:
        """Nothing but the statistics, for an objective to which the gradient counts for nothing.

        Args:
            images: Normalised pixels.
            statistics: As in `terms`.
        """

    def gradient_loss(self, images: Float[Tensor, "batch channel height width"]) -> float:
        """The relative layer norm over *all* parameters, whatever loss is descended.

        Args:
            images: Normalised pixels.
        """

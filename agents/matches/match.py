"""What the objective needs of a match."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from ...priors import InputStatistics
from ..in_parts import Pieces


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


class Separable(Match, Protocol):
    """A match that looks at each image by itself, so that a batch can be taken in parts."""

    def pieces(
        self, images: Tensor, labels: Tensor, rows: slice, statistics: InputStatistics, create_graph: bool
    ) -> Pieces:
        """What some images come to; those of all parts, added up or joined, are what `terms_of` takes.

        Args:
            images: Normalised pixels of these images.
            labels: Of the whole batch.
            rows: Which images of the batch they are.
            statistics: Entered around this call; holds those of these images afterwards.
            create_graph: Whether the pieces have a derivative by the images.
        """

    def terms_of(self, pieces: Pieces) -> dict[str, Float[Tensor, ""]]:
        """The distances of `Match.terms`.

        Args:
            pieces: Of the whole batch.
        """


class Inside(Match, Protocol):
    """A match with activations that are known inside the network."""

    def residual(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, " equations"]:
        """What a batch leaves of the equations that are smooth in the images, relative; zero at the private images.

        Args:
            images: Normalised pixels.
        """

    def outnumbers(self, pixels: int) -> bool:
        """Whether what is known exactly is at least as much as the pixels, so that little prior is needed.

        Args:
            pixels: Numbers of the batch.
        """

    def determines(self, pixels: int) -> bool:
        """Whether the residual has an equation for each pixel, or more: at its root no prior is needed.

        Args:
            pixels: Numbers of the batch.
        """

"""Features that are known at a cut through the network."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...peeling.cut import Cut, features_off
from ...priors import InputStatistics
from ..in_parts import Pieces
from .match import Match

# Estimated error of features up to which a prior can be spared at the end.
_EXACT = 0.015


class BehindCut:
    """Implements `Separable` by the features at a cut (see ``peeling/cut``): at a unit that was surely open the value
    in front of the rectifier has to be the known one, at the others what of it is above zero. What differs is measured
    image by image against the length of its own features, so that a faint image counts as much as a loud one.

    Gradients of the layers in front of the cut are left out: they jump with every unit that opens or shuts, and from a
    start that is only decoded they lead astray.

    Args:
        cut: With features in the order of the labels.
        whole: The match of all parameters, for what is not said of the cut alone.
        observed: Whether a prior looks at the inputs of the model's own layers, so that the model has to be run too.
        device: Where to compute.
        dtype: In which.
    """

    def __init__(self, cut: Cut, whole: Match, observed: bool, device: torch.device, dtype: torch.dtype) -> None:
        self._cut, self._whole, self._observed = cut, whole, observed
        self._forward = cut.forward(dtype, device)
        self._is_open = [place.is_open.to(device) for place in cut.places]
        self._is_held = [place.is_held.to(device) for place in cut.places]
        self._targets = [place.values.to(device, dtype) for place in cut.places]
        lengths = [target.flatten(1).norm(dim=1).clamp_min(1e-30) for target in self._targets]
        self._lengths = [length[:, None, None, None] for length in lengths]

    def terms(self, images: Tensor, labels: Tensor, statistics: InputStatistics) -> dict[str, Tensor]:
        """See `Match`."""
        return self.terms_of(self.pieces(images, labels, slice(None), statistics, create_graph=True))

    def pieces(
        self, images: Tensor, labels: Tensor, rows: slice, statistics: InputStatistics, create_graph: bool
    ) -> Pieces:
        """See `Separable`."""
        if self._observed:
            self._whole.observe(images, statistics)
        return Pieces((), (torch.linalg.vector_norm(self._off(images, rows), dim=1),))

    def terms_of(self, pieces: Pieces) -> dict[str, Tensor]:
        """See `Separable`."""
        return {"activation": pieces.joined[0].mean()}

    def observe(self, images: Tensor, statistics: InputStatistics) -> None:
        """See `Match`."""
        self._whole.observe(images, statistics)

    def gradient_loss(self, images: Tensor) -> float:
        """See `Match`."""
        return self._whole.gradient_loss(images)

    def residual(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, " equations"]:
        """What a batch leaves of the features, relative to each image's own; zero at the private images, up to the
        features' errors.

        Args:
            images: Normalised pixels.
        """
        return self._off(images).flatten() / len(images) ** 0.5

    def outnumbers(self, pixels: int) -> bool:
        """Whether exact features are at least as many as the pixels, and each pixel is seen: a maximum hides those that
        did not win.

        Args:
            pixels: Numbers of the batch.
        """
        return self._is_exact and sum(target.numel() for target in self._targets) >= pixels

    def determines(self, pixels: int) -> bool:
        """Whether the residual has an equation for each pixel, or more. A unit that is only known to be shut is none.

        Args:
            pixels: Numbers of the batch.
        """
        return self._is_exact and sum(int(is_open.sum()) for is_open in self._is_open) >= pixels

    @property
    def _is_exact(self) -> bool:
        error = max(float(place.error.max()) for place in self._cut.places)
        return error <= _EXACT and not self._cut.is_pooled

    def _off(self, images: Tensor, rows: slice = slice(None)) -> Float[Tensor, "batch feature"]:
        parts = []
        told = zip(self._forward(images), self._targets, self._is_open, self._is_held, self._lengths, strict=True)
        for value, target, is_open, is_held, length in told:
            off = features_off(value, target[rows], is_open[rows], is_held[rows])
            parts.append((off / length[rows]).flatten(1))
        return torch.cat(parts, dim=1)

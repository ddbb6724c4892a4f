"""Recovered activations, and the gradients of the layers in front of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...peeling import Anchor
from ...priors import InputStatistics
from ...target.second_derivative import forward_to
from ..in_parts import Pieces
from .comparison import Comparison
from .match import Match

# Estimated error of an anchor up to which a prior can be spared at the end.
_EXACT = 0.015


class Anchored:
    """Implements `Separable` behind an anchor (see ``peeling``): the relative distance to the recovered activations,
    and the gradients of the layers before it with the exact cotangent.

    Args:
        model: Of the objective, which runs it in the client's mode.
        anchor: On the model's device.
        whole: The match of all parameters, for what is not said of the layers before the anchor alone.
        gradients: Of all parameters.
        jump_weight: Of a gradient that is not continuous in the images; that of the others is 1.
    """

    def __init__(
        self, model: nn.Module, anchor: Anchor, whole: Match, gradients: Comparison, jump_weight: float
    ) -> None:
        self._model, self._anchor, self._whole = model, anchor, whole
        open_ = gradients.only([name for name in gradients.names if name not in anchor.explained])
        self._open = replace(open_, weights=_continuity(open_.names, anchor, jump_weight))
        self._continuous = open_.only(anchor.continuous)

    def terms(self, images: Tensor, labels: Tensor, statistics: InputStatistics) -> dict[str, Tensor]:
        """See `Match`."""
        return self.terms_of(self.pieces(images, labels, slice(None), statistics, create_graph=True))

    def pieces(
        self, images: Tensor, labels: Tensor, rows: slice, statistics: InputStatistics, create_graph: bool
    ) -> Pieces:
        """See `Separable`."""
        reached = forward_to(self._model, images, self._anchor.module)
        if not self._open.names:
            return Pieces((), (reached,))
        cotangent = self._anchor.cotangent[rows]
        return Pieces(self._open.derivatives(reached, cotangent, create_graph=create_graph), (reached,))

    def terms_of(self, pieces: Pieces) -> dict[str, Tensor]:
        """See `Separable`."""
        terms = {"activation": self._off(pieces.joined[0]).norm() / self._size}
        if self._open.names:
            terms["gradient"] = self._open.distance(pieces.summed)
        return terms

    def observe(self, images: Tensor, statistics: InputStatistics) -> None:
        """See `Match`."""
        self._whole.observe(images, statistics)

    def gradient_loss(self, images: Tensor) -> float:
        """See `Match`."""
        return self._whole.gradient_loss(images)

    def residual(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, " equations"]:
        """What a batch leaves of the activations and of the gradients that are continuous in the images, each relative
        to what was captured; zero to rounding at the private images.

        Args:
            images: Normalised pixels.
        """
        reached = forward_to(self._model, images, self._anchor.module)
        parts = [self._off(reached).flatten() / self._size]
        if self._continuous.names:
            found = self._continuous.derivatives(reached, self._anchor.cotangent, create_graph=True)
            ours, theirs = self._continuous.matched(found)
            size = torch.cat([target.flatten() for target in theirs]).norm().clamp_min(1e-30)
            parts += [(a - b).flatten() / size for a, b in zip(ours, theirs, strict=True)]
        return torch.cat(parts)

    def outnumbers(self, pixels: int) -> bool:
        """Whether exact activations and continuous gradients are at least as many as the pixels: little prior is needed
        then but on the way there, where a unit that was shut tells as much as one that was open.

        Args:
            pixels: Numbers of the batch.
        """
        return self._anchor.error <= _EXACT and self._anchor.activations.numel() + self._derivatives >= pixels

    def determines(self, pixels: int) -> bool:
        """Whether the residual has an equation for each pixel, or more: at its root no prior is needed.

        Args:
            pixels: Numbers of the batch.
        """
        activations = self._anchor.activations
        # A unit that is only known to be shut is no equation.
        known = int((activations > 0).sum()) if self._anchor.one_sided else activations.numel()
        return self.outnumbers(pixels) and known + self._derivatives >= pixels

    @property
    def _derivatives(self) -> int:
        return sum(target.numel() for target in self._continuous.targets)

    @property
    def _size(self) -> Tensor:
        return self._anchor.activations.norm().clamp_min(1e-30)

    def _off(self, reached: Tensor) -> Tensor:
        """How far the anchor's input is from what it was; where a ReLU was shut only a positive input is wrong."""
        activations = self._anchor.activations
        if not self._anchor.one_sided:
            return reached - activations
        return torch.where(activations > 0, reached - activations, reached.clamp_min(0))


def _continuity(names: tuple[str, ...], anchor: Anchor, jump_weight: float) -> tuple[float, ...] | None:
    """One weight for each gradient before the anchor: 1 where it is continuous in the images; None: all are alike.

    Where a ReLU lies in between, the gradient jumps with every unit that opens or shuts, which a descent can neither
    see nor follow: such gradients say more of the noise of the way than of the way.
    """
    if jump_weight == 1 or not any(name in anchor.continuous for name in names):
        return None
    return tuple(1.0 if name in anchor.continuous else jump_weight for name in names)

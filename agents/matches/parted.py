"""A match that takes a large batch in parts, so that one part's graph is held at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ...priors import InputStatistics, Statistics
from ..in_parts import Pieces, in_parts
from .match import Separable
from .plain import Plain


class Parted:
    """Implements `Match` by another one, part by part; equal to it to rounding.

    Args:
        match: What is descended.
        whole: The match of all parameters.
        at_once: Images of a part.
        layers: Whose input statistics a prior looks at, by name.
        as_the_client: Enters the client's mode; on the way back each part's graph is made in it again.
    """

    def __init__(
        self,
        match: Separable,
        whole: Plain,
        at_once: int,
        layers: Mapping[str, nn.Module],
        as_the_client: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._match, self._whole, self._at_once = match, whole, at_once
        self._layers, self._as_the_client = layers, as_the_client

    def terms(self, images: Tensor, labels: Tensor, statistics: InputStatistics) -> dict[str, Tensor]:
        """See `Match`."""

        def run(part: Tensor, rows: slice, seen: InputStatistics, create_graph: bool) -> Pieces:
            return self._match.pieces(part, labels, rows, seen, create_graph)

        return self._match.terms_of(self._over_parts(images, statistics, run))

    def observe(self, images: Tensor, statistics: InputStatistics) -> None:
        """See `Match`."""

        def run(part: Tensor, rows: slice, seen: InputStatistics, create_graph: bool) -> Pieces:
            self._match.observe(part, seen)
            return Pieces((), ())

        self._over_parts(images, statistics, run)

    def gradient_loss(self, images: Tensor) -> float:
        """See `Match`."""
        summed: list[Tensor] = []
        for begin in range(0, len(images), self._at_once):
            rows = slice(begin, min(begin + self._at_once, len(images)))
            found = self._whole.gradients(images[rows], rows).summed
            summed = [a + b for a, b in zip(summed, found, strict=True)] if summed else list(found)
        return self._whole.gradient_loss_of(Pieces(tuple(summed), ()))

    def _over_parts(
        self, images: Tensor, statistics: InputStatistics, run: Callable[[Tensor, slice, InputStatistics, bool], Pieces]
    ) -> Pieces:
        """The pieces of the whole batch; its statistics are noted as if it had been run at once."""
        names: list[str] = []

        def run_part(part: Tensor, rows: slice, create_graph: bool) -> Pieces:
            with InputStatistics(self._layers) as seen, self._as_the_client():
                pieces = run(part, rows, seen, create_graph)
            names[:] = seen.found
            rows_of = tuple(value[None] for found in seen.found.values() for value in found)
            return Pieces(pieces.summed, (*pieces.joined, *rows_of))

        pieces = in_parts(images, self._at_once, run_part)
        own = len(pieces.joined) - 2 * len(names)
        counts = [min(self._at_once, len(images) - begin) for begin in range(0, len(images), self._at_once)]
        told = zip(names, pieces.joined[own::2], pieces.joined[own + 1 :: 2], strict=True)
        statistics.found.update({name: _of_whole(means, variances, counts) for name, means, variances in told})
        return Pieces(pieces.summed, pieces.joined[:own])


def _of_whole(means: Tensor, variances: Tensor, counts: list[int]) -> Statistics:
    """Mean and variance of all images, from those of each part (Chan et al. 1979)."""
    shares = torch.tensor(counts).to(means)[:, None] / sum(counts)
    mean = (shares * means).sum(dim=0)
    return mean, (shares * (variances + (means - mean).square())).sum(dim=0)

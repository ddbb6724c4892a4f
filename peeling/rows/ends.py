"""What enters a block with a skip and what leaves it, at each place: both lie in row spaces that are known.

The weight gradients of the pointwise convolutions that read the sum and what enters have as row spaces the spans of
these values, V and U, over all places. Their difference at a place is what the block adds there, which follows from its
inner row. So ``V^T v - U^T u`` is known: C equations in 2 N unknowns, the same matrix for all places.

Rank: ``2 N <= C``, with spans that meet in nothing but zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .space import row_space

# How much longer than the list of unknowns the list of equations must be.
_OVERDETERMINED = 1.02
_LARGEST_CONDITION = 1e5


@dataclass(frozen=True)
class BlockEnds:
    """At every place, in the order of the rows."""

    entering: Float[Tensor, "place channel"]
    leaving: Float[Tensor, "place channel"]
    misfit: Float[Tensor, " place"]
    """What they leave of the difference, relative."""
    error: Float[Tensor, " place"]
    """Estimated, relative, of what enters."""


def block_ends(
    entering_gradient: Float[Tensor, "output channel *ones"],
    leaving_gradient: Float[Tensor, "following channel *ones"],
    added: Float[Tensor, "place channel"],
) -> BlockEnds | None:
    """Both ends; None where they are not determined.

    Args:
        entering_gradient: Captured, of the pointwise convolution that reads what enters.
        leaving_gradient: Captured, of the one that reads the sum.
        added: What the block adds at each place.
    """
    places, channels = added.shape
    if channels < 2 * places * _OVERDETERMINED:
        return None
    spaces = [row_space(gradient, places) for gradient in (entering_gradient, leaving_gradient)]
    if spaces[0] is None or spaces[1] is None:
        return None
    one, other = spaces[0].basis, spaces[1].basis
    matrix = torch.cat([-one, other]).T
    singular = torch.linalg.svdvals(matrix)
    if not float(singular[0] / singular[-1].clamp_min(1e-300)) < _LARGEST_CONDITION:
        return None
    solution = torch.linalg.lstsq(matrix, added.T).solution
    left = matrix @ solution - added.T
    entering, leaving = (part.T @ basis for part, basis in ((solution[:places], one), (solution[places:], other)))
    noise = left.norm(dim=0) / max(channels - 2 * places, 1) ** 0.5
    spread = torch.linalg.pinv(matrix.T @ matrix).diagonal()[:places].sum().clamp_min(0).sqrt()
    misfit = left.norm(dim=0) / added.norm(dim=1).clamp_min(1e-300)
    return BlockEnds(entering, leaving, misfit, noise * spread / entering.norm(dim=1).clamp_min(1e-300))

"""The taps of a convolution in front of batch norm on the batch's own statistics: from the corner of the grid.

Batch norm by the batch's mean makes the derivative by its input add up to zero over all places: its N rows have rank
``N - 1``, the weight gradient's taps ``G_d = Delta^T T_d A`` are not square in its ranges, and the pencil of `taps` has
no eigenvalues. Of several batches, as in a sum over steps, each adds up to zero by itself, and the rank is ``N -
batches``. Places are found one after another instead. In the coordinates of the inputs' range let ``F_q`` be the B
vectors (one for each image) that the inputs of all places but q are orthogonal to. Then ``G_d F_q = Delta^T T_d e_q``
is the derivative at ``q - d``, and zero where that leaves the grid:

- those of the corner are the null space of all taps that leave the grid there,
- a neighbour's follow by linear equations: ``G_d F_q = G_0 F_(q-d)``.

What is left open is one B x B mixing of the images, as in `taps`; the result is refined and checked as there.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .taps import MOST_PLACES, Factors, compressed, refine

# Singular values of the corner's null space, relative to the next one, above which there is none.
_LARGEST_CORNER = 0.2

Place = tuple[int, int]


def factor_balanced_taps(
    weight_gradient: Float[Tensor, "output input height width"],
    image_count: int,
    size: tuple[int, int],
    batches: int = 1,
) -> Factors | None:
    """Input and cotangent of a stride-1 convolution whose cotangents add up to zero over all images and places.

    Args:
        weight_gradient: Captured; an odd kernel, without dilation or groups.
        image_count: B.
        size: Height and width of the layer's input.
        batches: That the images are of: the cotangents of each of them add up to zero.

    Returns:
        None where there are more places than channels or than are affordable, or where the gradient is not that of so
        many places; and on a grid of one place, whose taps all leave it.
    """
    gradient = weight_gradient.detach().cpu().double()
    outputs, inputs = gradient.shape[:2]
    places = image_count * size[0] * size[1]
    if (
        size[0] * size[1] == 1
        or not 1 < places <= min(outputs + batches, inputs, MOST_PLACES)
        or not bool(torch.isfinite(gradient).all())
    ):
        return None
    within = compressed(gradient, places - batches, places)
    if within is None:
        return None
    left, small, leak = within.left, within.taps, within.leak
    try:
        cotangents = _from_the_corner(small, image_count, size)
        found = None if cotangents is None else refine(gradient, (left @ cotangents).T, image_count, size)
    except RuntimeError:  # singular: the places do not span the gradient
        return None
    if found is None:
        return None
    own, theirs, misfit = found
    grid = (image_count, size[0] * size[1])
    return Factors(own.reshape(*grid, inputs), theirs.reshape(*grid, outputs), misfit, leak)


def _from_the_corner(
    small: dict[Place, Tensor], image_count: int, size: tuple[int, int]
) -> Float[Tensor, "rank place"] | None:
    """In the gradient's own coordinates each place's cotangents, images outermost; None where the corner has no space
    of as many dimensions as there are images."""
    leaving = [tap for shift, tap in small.items() if not _inside((0, 0), shift, size)]
    _, values, vectors = torch.linalg.svd(torch.cat(leaving))
    if not float(values[-image_count]) <= _LARGEST_CORNER * float(values[-image_count - 1]):
        return None
    found = {(0, 0): vectors[-image_count:].T}
    for row in range(size[0]):
        for column in range(size[1]):
            if (row, column) not in found:
                found[row, column] = _following(small, found, (row, column), size)
    vectors = torch.stack([found[row, column] for row in range(size[0]) for column in range(size[1])], dim=2)
    return small[0, 0] @ vectors.flatten(1)


def _following(
    small: dict[Place, Tensor], found: dict[Place, Tensor], place: Place, size: tuple[int, int]
) -> Float[Tensor, "place image"]:
    """The vectors of a place beside some that are known."""
    count = found[0, 0].shape[1]
    left, right = list[Tensor](), list[Tensor]()
    for shift, tap in small.items():
        before, behind = _moved(place, shift, -1), _moved(place, shift, 1)
        if shift == (0, 0):
            continue
        if not _inside(place, shift, size):
            left.append(tap)
            right.append(tap.new_zeros(len(tap), count))
        elif before in found:
            left.append(tap)
            right.append(small[0, 0] @ found[before])
        if behind in found:
            left.append(small[0, 0])
            right.append(tap @ found[behind])
    return torch.linalg.lstsq(torch.cat(left), torch.cat(right)).solution


def _moved(place: Place, shift: Place, by: int) -> Place:
    return place[0] + by * shift[0], place[1] + by * shift[1]


def _inside(place: Place, shift: Place, size: tuple[int, int]) -> bool:
    """Whether the place whose derivative a tap sees there is on the grid."""
    row, column = _moved(place, shift, -1)
    return 0 <= row < size[0] and 0 <= column < size[1]

"""Which places lie side by side in one image: a depthwise convolution's output at a place is made of its neighbours.

At an open unit the output of the depthwise convolution at place p is ``sum_d k_d(c) h(p + d)(c)``, with the inputs h of
all places known but not which of them is where. For one place this is linear in the weights of every candidate at
every offset, of which at most one is 1 at each offset and all others are 0: non-negative least squares (Lawson &
Hanson 1974) finds them. Neighbours of neighbours then make up images; zeros around are the absence of a neighbour.
"""

from __future__ import annotations

import numpy as np
import scipy
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

# A candidate is a neighbour where it has at least this weight.
_CHOSEN = 0.5

Offset = tuple[int, int]


def place_order(
    hidden: Float[Tensor, "place channel"],
    outputs: Float[Tensor, "place channel"],
    heard: Bool[Tensor, "place channel"],
    kernel: Float[Tensor, "channel row column"],
    size: tuple[int, int],
) -> Int[Tensor, "image height width"] | None:
    """For each place of each image the row that lies there; None where the rows do not make up whole images.

    Args:
        hidden: Input of the depthwise convolution, by row.
        outputs: Its output without its bias, by row.
        heard: Where the output is known.
        kernel: Of the convolution.
        size: Height and width of the grid.
    """
    height, width = size
    middle = (kernel.shape[1] // 2, kernel.shape[2] // 2)
    offsets = [
        (down, right)
        for down in range(-min(middle[0], height - 1), min(middle[0], height - 1) + 1)
        for right in range(-min(middle[1], width - 1), min(middle[1], width - 1) + 1)
        if (down, right) != (0, 0)
    ]
    own = outputs - kernel[:, middle[0], middle[1]] * hidden
    taps = torch.stack([kernel[:, middle[0] + down, middle[1] + right] for down, right in offsets]) if offsets else None
    found: list[dict[Offset, int]] = []
    for place in range(len(hidden)):
        if taps is None:
            found.append({})
            continue
        others = [other for other in range(len(hidden)) if other != place]
        told = heard[place]
        matrix = (taps[:, None, told] * hidden[others][None, :, told]).flatten(0, 1).T
        weights = _non_negative(matrix.numpy(), own[place, told].numpy()).reshape(len(offsets), len(others))
        best = weights.argmax(axis=1)
        chosen = {
            offset: others[best[index]] for index, offset in enumerate(offsets) if weights[index, best[index]] > _CHOSEN
        }
        found.append(chosen)
    return _images(found, size)


def _non_negative(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    size = np.linalg.norm(matrix, axis=0)
    size[size == 0] = 1.0
    try:
        found, _ = scipy.optimize.nnls(matrix / size, target, maxiter=10 * matrix.shape[1])
    except RuntimeError:  # too many rounds
        return np.zeros(matrix.shape[1])
    return np.asarray(found / size)


def _images(neighbours: list[dict[Offset, int]], size: tuple[int, int]) -> Int[Tensor, "image height width"] | None:
    """Places put side by side, one image after another."""
    height, width = size
    left, images = set(range(len(neighbours))), []
    while left:
        first = min(left)
        at, waiting = {first: (0, 0)}, [first]
        while waiting:
            place = waiting.pop()
            for (down, right), other in neighbours[place].items():
                where = (at[place][0] + down, at[place][1] + right)
                if at.setdefault(other, where) != where:
                    return None
                if other in left:
                    left.discard(other)
                    if other != first:
                        waiting.append(other)
        left.discard(first)
        top, begin = min(row for row, _ in at.values()), min(column for _, column in at.values())
        image = torch.full((height, width), -1)
        for place, (row, column) in at.items():
            if not (row - top < height and column - begin < width):
                return None
            image[row - top, column - begin] = place
        if len(at) != height * width or bool((image < 0).any()):
            return None
        images.append(image)
    return torch.stack(images)

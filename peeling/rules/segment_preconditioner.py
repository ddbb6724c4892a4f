"""What of a segment's input its equations hold strongly, roughly inverted: for conjugate gradients to go by.

The gradient of a convolution that reads the input is linear in it, with one normal matrix over the places of all images
for every channel (see `equations`). Its eigenvalues go from nothing, where places are more than equations, to a
hundred times what the known outputs hold, and conjugate gradients follow the weakest directions last. The inverse of
that matrix, with what all else holds added at the mean, costs little, and brings the same result in a quarter of the
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..kinds import Convolution
from .equations import affordable, gradient_equations
from .segment import Rectify, Segment

# More places than that are as slow to invert as the steps that it saves.
_MOST_PLACES = 2048
# What all else holds the input by, as a share of the whole.
_REST = 0.1


def places_matrix(
    segment: Segment,
    entering: Tensor,
    rectify: Rectify,
    opened: Sequence[Tensor],
) -> Tensor | None:
    """The normal matrix of those gradients; None where there is none, or too many places.

    Args:
        segment: With the gradients.
        entering: Its input, about.
        rectify: For the rectifiers in between.
        opened: Of the ends' units.
    """
    count, _, height, width = segment.shape
    places, readers = count * height * width, []
    for one in segment.given:
        node = segment.graph.by_name[one.node]
        kind, own = node.kind, one.gradient.dim() > 1 and node.inputs == (segment.value,)
        if own and isinstance(kind, Convolution) and affordable(kind, places, node.shape[0]):
            readers.append((one, kind, node))
    if not readers or places > _MOST_PLACES:
        return None
    added = {one.node: torch.zeros(count, *node.shape, requires_grad=True) for one, _, node in readers}
    with torch.enable_grad():
        values = segment.run(entering, rectify, added=added)
        # An end that none of these convolutions comes before, as where a skip ends, says nothing of them.
        behind = [
            (values[end.before], end.passed * mask)
            for end, mask in zip(segment.ends, opened, strict=True)
            if values[end.before].requires_grad
        ]
        if not behind:
            return None
        outputs, arriving = zip(*behind, strict=True)
        found = torch.autograd.grad(outputs, list(added.values()), arriving, allow_unused=True, materialize_grads=True)
    matrix = torch.zeros(places, places, dtype=torch.float64)
    for (one, kind, _), cotangent in zip(readers, found, strict=True):
        equations = gradient_equations(kind, (height, width), one.gradient, cotangent.double())
        matrix += equations.matrix @ equations.matrix.T
    return matrix.float()


def by_places(matrix: Tensor, curvature: float, shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Nearly the inverse of what all equations hold of the input.

    Args:
        matrix: See `places_matrix`.
        curvature: Of all that is told, for a usual direction.
        shape: Of the input, with the images.
    """
    count, channels, height, width = shape
    factor, failed = torch.linalg.cholesky_ex(matrix + _REST * curvature * torch.eye(len(matrix)))
    if int(failed):
        return lambda values: values  # numbers that no matrix has an inverse for: what is found is checked anyhow
    inverse = torch.cholesky_inverse(factor)

    def preconditioned(values: Tensor) -> Tensor:
        rows = values.reshape(count, channels, height, width).permute(0, 2, 3, 1).reshape(-1, channels)
        found = (inverse @ rows).reshape(count, height, width, channels).permute(0, 3, 1, 2)
        return found.reshape(values.shape)

    return preconditioned


def by_places_operations(segment: Segment) -> float:
    """How many floating-point operations it takes in each step."""
    count, channels, height, width = segment.shape
    return 2.0 * (count * height * width) ** 2 * channels

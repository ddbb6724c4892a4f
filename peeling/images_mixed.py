"""By how much images that were told apart may still be mixed: what their shut units leave, and how much hangs on each.

An image is told from the others by its shut units alone, which are solved for to be zero by least squares (see
`images_apart`). Where images are like each other a few of them decide, and one that is open and was taken for shut
moves the solution by far more than the noise does: every unit that is shut in all images is met all the same, so that
what is left looks like little. Each unit is therefore left out in turn, and the moves of the solution are added up in
squares (the jackknife's variance). What the solution moves by is a share of another image, the same in every unit; the
other image's cotangent lacks as large a share of this one's, and this one's length, to which the shares add, is off.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# No unit's leverage counts as nearer to 1: the solution would hang on it alone, which is refused where images are told
# apart.
_LARGEST_LEVERAGE = 1 - 1e-9


def mixing_variances(
    inputs: Float[Tensor, "image unit"], shut: Bool[Tensor, "image unit"]
) -> Float[Tensor, "image image image"]:
    """For each image the covariance of the shares of the images in it; zero for its own.

    Args:
        inputs: What was found for each image, also where it is below zero.
        shut: Its units that were solved for to be zero.
    """
    count = len(inputs)
    found = inputs.new_zeros(count, count, count)
    for image in range(count):
        others = torch.arange(count) != image
        columns = inputs[others][:, shut[image]].T
        if not columns.numel():
            continue
        inverse = torch.linalg.pinv(columns)
        left = inputs[image, shut[image]]
        left = left - columns @ (inverse @ left)
        leverage = (columns * inverse.T).sum(dim=1).clamp_max(_LARGEST_LEVERAGE)
        moves = inverse * (left / (1 - leverage))
        whole = inputs.new_zeros(count, count - 1)
        whole[others] = moves @ moves.T
        found[image][:, others] = whole
    return found


def mixing_errors(
    inputs: Float[Tensor, "image unit"], cotangents: Float[Tensor, "image other_unit"], shut: Bool[Tensor, "image unit"]
) -> tuple[Float[Tensor, " image"], Float[Tensor, " image"]]:
    """Relative errors of each image's input and cotangent by what is left mixed.

    Args:
        inputs: What was found for each image, also where it is below zero.
        cotangents: Beside them; their product with the inputs is what was given.
        shut: Units of each input that were solved for to be zero.
    """
    variances = mixing_variances(inputs, shut)
    alike = inputs @ inputs.T
    size, length = alike.diagonal().clamp_min(1e-300), cotangents.norm(dim=1).clamp_min(1e-300)
    along = alike / size[:, None]
    stretched = torch.einsum("ij,ijk,ik->i", along, variances, along)
    # Each image's length is told anew: what others add along its own direction does not count for its input.
    whole = torch.einsum("ijk,jk->i", variances, alike) / size
    lacking = variances.diagonal(dim1=1, dim2=2) * (length[:, None] / length).square()
    return (whole - stretched).clamp_min(0).sqrt(), (lacking.sum(dim=0) + stretched).clamp_min(0).sqrt()

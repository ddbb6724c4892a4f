"""Total variation: natural images are piecewise smooth."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Keeps the derivative of the square root finite on flat regions; far below one grey level (1/255) squared.
_SMOOTHING = 1e-8


def total_variation(images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, ""]:
    """Anisotropic total variation, the mean over the batch of ``sum |x[i+1,j]-x[i,j]| + |x[i,j+1]-x[i,j]|``.

    Written in the paper's fidelity regulariser R_TV (Yin et al. 2021, eq. 9) and, as here, in Geiping et al. 2020.

    Args:
        images: Normalised pixels, at least 2 pixels high and wide.
    """
    vertical = (images[..., 1:, :] - images[..., :-1, :]).abs().sum()
    horizontal = (images[..., :, 1:] - images[..., :, :-1]).abs().sum()
    return (vertical + horizontal) / images.shape[0]


def colour_total_variation(images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, ""]:
    """Isotropic total variation coupled over the channels, the mean over all pixels of the gradient magnitude:
    ``sqrt((1/C) sum_c (d_vertical x_c)^2 + (d_horizontal x_c)^2)``.

    One square root over the channels makes edges in the three colours fall on the same pixels
    (Bresson & Chan 2008, "Fast dual minimization of the vectorial total variation norm"). Being a mean, it does not
    depend on the image size, so one weight serves all sizes.

    Args:
        images: Normalised pixels, at least 2 pixels high and wide.
    """
    # Forward differences with a border of equal pixels, so that the last row and column belong to it too.
    vertical = F.pad(images[..., 1:, :] - images[..., :-1, :], (0, 0, 0, 1))
    horizontal = F.pad(images[..., :, 1:] - images[..., :, :-1], (0, 1))
    squared = (vertical.square() + horizontal.square()).mean(dim=1)
    return (squared + _SMOOTHING).sqrt().mean()


def anisotropic_total_variation(images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, ""]:
    """``mean |x[i+1,j]-x[i,j]| + mean |x[i,j+1]-x[i,j]|``: the anisotropic form as a mean over pixels
    (Geiping et al. 2020, section 4).

    Args:
        images: Normalised pixels, at least 2 pixels high and wide.
    """
    vertical = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    horizontal = (images[..., :, 1:] - images[..., :, :-1]).abs().mean()
    return vertical + horizontal

"""Squared magnitude: pixels stay near the data's mean."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def l2_norm(images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, ""]:
    """``||x||_2`` of each image, averaged over the batch: R_l2 of Yin et al. 2021, eq. 9.

    Args:
        images: Normalised pixels, so that zero is the data's mean colour.
    """
    return images.flatten(1).norm(dim=1).mean()


def mean_square(images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, ""]:
    """``mean(x^2)``: the same preference, free of the image size and smooth at zero.

    Args:
        images: Normalised pixels, so that zero is the data's mean colour.
    """
    return images.square().mean()

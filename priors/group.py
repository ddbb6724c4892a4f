"""Group consistency: seeds that look at the same gradient should agree on the image."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def group_distance(
    images: Float[Tensor, "batch channel height width"],
    consensus: Float[Tensor, "batch channel height width"],
) -> Float[Tensor, ""]:
    """``||x - E(x_group)||_2`` of each image, averaged over the batch: R_group of Yin et al. 2021, eq. 12.

    Args:
        images: This seed's candidate, normalised pixels.
        consensus: The registered mean of all seeds, normalised pixels. No derivative flows into it.
    """
    return _image_distance(images, consensus).mean()


def relative_group_distance(
    images: Float[Tensor, "batch channel height width"],
    consensus: Float[Tensor, "batch channel height width"],
) -> Float[Tensor, ""]:
    """The group distance as root mean square per pixel, so that one weight serves all image sizes.

    Args:
        images: This seed's candidate, normalised pixels.
        consensus: The registered mean of all seeds, normalised pixels. No derivative flows into it.
    """
    return _image_distance(images, consensus).mean() / images[0].numel() ** 0.5


def _image_distance(
    images: Float[Tensor, "batch channel height width"],
    consensus: Float[Tensor, "batch channel height width"],
) -> Float[Tensor, " batch"]:
    # The smoothing keeps the derivative finite where a candidate *is* the consensus, as with one seed.
    return ((images - consensus.detach()).square().flatten(1).sum(dim=1) + 1e-12).sqrt()

"""PSNR with the contrast apart, where batch norm on the batch's own statistics hides it from the gradient.

Of such a batch the gradient tells everything but one factor, common to all its images as the model is given them. The
PSNR of the answer as it stands counts that factor as an error; beside it stands what is left when the factor is the one
that fits the private images best. It decides nothing: a server does not know the factor, but sees the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from jaxtyping import Float
from torch import Tensor

from ..coordinator import Reconstruction
from ..peeling.record import Contrast
from .figures import psnr_in_words
from .image_result import ImageResult, compared
from .metrics import psnr


def add_contrast_apart(
    results: tuple[ImageResult, ...],
    reconstruction: Reconstruction,
    images: Float[Tensor, "batch channel height width"],
    true: Float[Tensor, "batch channel height width"],
) -> tuple[ImageResult, ...]:
    """The results with `psnr_contrast_apart`, where the contrast is hidden; as they are elsewhere.

    Args:
        results: One per image.
        reconstruction: Of the attack: its record of peeling tells whether the contrast is hidden.
        images: The answer in the order of the results, in [0, 1].
        true: The private images in that order, in [0, 1].
    """
    record = reconstruction.peeling
    if record is None or record.contrast is not Contrast.HIDDEN or not reconstruction.candidates:
        return results
    normalisation, size = reconstruction.normalisation, images.new_tensor(reconstruction.normalisation.std)
    # Errors of pixels are those of the model's input times the deviation of their channel.
    weight = size[:, None, None].double().square()
    own, private = normalisation.apply(images.double()), normalisation.apply(true.double())
    factor = (weight * own * private).sum() / (weight * own.square()).sum().clamp_min(1e-300)
    values = psnr(normalisation.invert(factor * own).clamp(0, 1), true).tolist()
    return tuple(replace(row, psnr_contrast_apart=value) for row, value in zip(results, values, strict=True))


def contrast_note(images: Sequence[ImageResult]) -> str:
    """What the hidden contrast costs, in one sentence; empty where it is not hidden."""
    values = [image.psnr_contrast_apart for image in compared(images) if image.psnr_contrast_apart is not None]
    if not values:
        return ""
    return (
        "Batch norm on the batch's own statistics hides one factor, the contrast of the whole batch: with "
        f"the private images' contrast the {'mean ' if len(values) > 1 else ''}PSNR is {psnr_in_words(fmean(values))}."
    )

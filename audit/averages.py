"""What the candidates make together: their plain mean, the rule of the consensus, and registration, told apart."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..coordinator import Reconstruction, flatten
from ..registration import RegistrationError
from ..registration.candidates import check
from ..registration.config import CONSENSUS
from ..registration.consensus import average
from .image_result import ImageResult
from .metrics import psnr


def candidate_images(reconstruction: Reconstruction) -> Float[Tensor, "seed batch channel height width"]:
    """The final candidates in [0, 1] on the CPU; an empty first axis when no seed survived."""
    if not reconstruction.candidates:
        return reconstruction.images.detach().cpu()[None][:0]
    return reconstruction.candidate_images.detach().cpu()


def plain_mean(reconstruction: Reconstruction) -> Float[Tensor, "batch channel height width"] | None:
    """The mean of the candidates as they stand, in [0, 1], in the order of the consensus; None for fewer than two."""
    candidates = candidate_images(reconstruction)
    return candidates.mean(0) if len(candidates) > 1 else None


def unregistered(reconstruction: Reconstruction) -> Float[Tensor, "batch channel height width"] | None:
    """The consensus as it would be without registration, in [0, 1]; None where that cannot be told.

    The rule of the consensus (`registration.consensus`) averages the candidates as they stand. Where every warp of the
    last consensus was refused, or nothing was to be registered, the consensus itself is that, to the bit.
    """
    if not reconstruction.registration or len(reconstruction.candidates) < 2:
        return None
    settings = dict(flatten(reconstruction.config))
    if settings.get("registration.method") == "none" or all_warps_refused(reconstruction):
        return reconstruction.consensus.detach().cpu()
    rule = settings.get("registration.consensus")
    if rule not in CONSENSUS:
        return None
    try:
        usable = check(torch.stack([c.images.detach().cpu() for c in reconstruction.candidates]), None)
    except RegistrationError:
        return None
    return reconstruction.normalisation.invert(average(usable.images, None, usable.weights, rule)).clamp(0, 1)


def all_warps_refused(reconstruction: Reconstruction) -> bool:
    """Whether the last consensus was made of the candidates as they stand, since the guard refused every warp."""
    return bool(reconstruction.registration) and reconstruction.registration[-1].get("rejected") == 1.0


def add_averages(
    results: tuple[ImageResult, ...], reconstruction: Reconstruction, order: tuple[int, ...], true: Tensor | None
) -> tuple[ImageResult, ...]:
    """The results with what the plain mean and the unregistered consensus reach, and how far the consensus moved.

    Args:
        results: one per image.
        reconstruction: of the attack.
        order: for each result the image of the consensus that stands for it.
        true: the private images in the order of the results; None without ground truth.
    """
    mean, places = plain_mean(reconstruction), list(order)
    if mean is None:
        return results
    mean, consensus = mean[places], reconstruction.consensus.detach().cpu()[places]
    changes = (consensus - mean).square().flatten(1).mean(1).sqrt().tolist()
    values = _psnr(mean, true, len(results))
    without = unregistered(reconstruction)
    standing = _psnr(None if without is None else without[places], true, len(results))
    return tuple(
        replace(row, plain_mean_psnr=value, unregistered_psnr=stood, registration_change=change)
        for row, value, stood, change in zip(results, values, standing, changes, strict=True)
    )


def _psnr(images: Tensor | None, true: Tensor | None, count: int) -> list[float | None]:
    return [None] * count if images is None or true is None else list(psnr(images, true).tolist())

"""What a batch must be before a client may run it: pixels in [0, 1], channels first, one class index per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from .errors import UpdateError
from .normalisation import Normalisation

ROUNDING = 1e-5
"""By so much pixels may leave [0, 1]: an interpolation in single precision rounds."""
_EIGHT_BITS = 255.5
_FEW_CHANNELS = (1, 3, 4)

Arrays = Tensor | NDArray[Any] | Sequence[Any]


def as_batch(
    images: Arrays, labels: Arrays, normalisation: Normalisation
) -> tuple[Float[Tensor, "batch channel height width"], Int[Tensor, " batch"]]:
    """The batch as tensors, when it is one that a client can run.

    Args:
        images: Pixels in [0, 1], shape (B, C, H, W): a tensor, an array, or a list of either.
        labels: One class index per image, in the same ways.
        normalisation: Must be of as many channels as the images.

    Returns:
        Images of the type that they were given in, and labels of 64 bits.

    Raises:
        UpdateError: What the batch is, what it must be, and what to do about it, in one sentence.
    """
    pixels, classes = _as_tensor("images", images), _as_tensor("labels", labels)
    if pixels.ndim != 4 or pixels.shape[0] < 1:
        raise UpdateError(f"images have shape {tuple(pixels.shape)}; give (batch, channel, height, width), batch >= 1")
    _require_channels(pixels, len(normalisation.mean))
    require_unit_range(pixels)
    if classes.shape != pixels.shape[:1]:
        raise UpdateError(f"labels have shape {tuple(classes.shape)} for {pixels.shape[0]} images; give one per image")
    return pixels, _as_indices(classes)


def require_unit_range(images: Tensor, what: str = "the pixels") -> None:
    """Return quietly when these are pixels in [0, 1], up to rounding.

    Args:
        images: Of any shape.
        what: Whose pixels, for the sentence.

    Raises:
        UpdateError: The range or the type found, the one wanted, and what probably happened.
    """
    if not images.is_floating_point():
        found = f"{what} are whole numbers of type {_type(images)}"
        if images.dtype is not torch.bool and images.numel() and not images.is_complex():
            found += f" from {int(images.min())} to {int(images.max())}"
        raise UpdateError(f"{found}; give floating-point numbers in [0, 1]: divide 8-bit pixels by 255")
    if not bool(torch.isfinite(images).all()):
        raise UpdateError(f"{what} are not finite (NaN or infinity); give numbers in [0, 1]")
    low, high = (float(bound) for bound in torch.aminmax(images))
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise UpdateError(f"{what} span {low:.3g} to {high:.3g}; give them in [0, 1]: {_advice(low, high)}")


def require_classes(output: Tensor, labels: Int[Tensor, " batch"]) -> Tensor:
    """The model's output, when every label is one of its classes. An output of one logit or of no rows is not judged.

    Raises:
        UpdateError: A label lies outside the classes.
    """
    if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1:
        highest, classes = int(labels.max()), output.shape[1]
        if highest >= classes:
            where = int(labels.argmax())
            raise UpdateError(
                f"the label of image {where} is {highest}, and the model tells {classes} classes apart; give labels "
                f"from 0 to {classes - 1}"
            )
    return output


def _as_tensor(name: str, given: Arrays) -> Tensor:
    if isinstance(given, Tensor):
        return given
    try:
        if isinstance(given, Sequence) and given and all(isinstance(part, Tensor) for part in given):
            return torch.stack([part.detach() for part in given])
        return torch.from_numpy(np.array(given))
    # Parts of different shapes, or of no numbers at all.
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UpdateError(
            f"{name} are a {type(given).__name__} that is no array of numbers ({reason}); give a tensor"
        ) from None


def _require_channels(images: Tensor, wanted: int) -> None:
    found, last = images.shape[1], images.shape[3]
    if found == wanted:
        return
    if last == wanted or (found not in _FEW_CHANNELS and last in _FEW_CHANNELS):
        raise UpdateError(
            f"images have shape {tuple(images.shape)}, with the channels last; give (batch, channel, height, width): "
            "images.permute(0, 3, 1, 2) of a tensor"
        )
    raise UpdateError(
        f"images have {_counted(found, 'channel')} and the normalisation is for {_counted(wanted, 'channel')} "
        "(ImageNet's is the default); give normalisation=(mean, std) with one number per channel of the images"
    )


def _as_indices(labels: Tensor) -> Int[Tensor, " batch"]:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise UpdateError(f"labels have type {_type(labels)}; give one class index, a whole number, per image")
    indices = labels.long()
    lowest = int(indices.min())
    if lowest < 0:
        raise UpdateError(
            f"the label of image {int(indices.argmin())} is {lowest}; a class index is 0 or more, and an image that a "
            "loss leaves out (ignore_index) is no part of its mean: leave it out of the batch"
        )
    return indices


def _advice(low: float, high: float) -> str:
    if low >= 0 and high <= _EIGHT_BITS:
        return "divide 8-bit pixels by 255, and clamp what an interpolation left above 1"
    if low >= 0:
        return "divide them by their largest possible value"
    if low >= -1 - ROUNDING and high <= 1 + ROUNDING:
        return (
            "they may be scaled to [-1, 1], which is normalisation=(0.5, 0.5) per channel; give them before it, "
            "(images + 1) / 2"
        )
    return "they may be normalised already; give them before that, and its mean and std as the normalisation"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

"""The affine map between pixels and what a model is fed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import UpdateError


@dataclass(frozen=True)
class Normalisation:
    """The affine map per channel between pixels in [0, 1] and what the model is fed: ``(x - mean) / std``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise UpdateError(
                f"the normalisation has {len(self.mean)} means and {len(self.std)} deviations; "
                "give one of each per image channel"
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise UpdateError(
                f"the normalisation is mean {self.mean} and std {self.std}; "
                "every mean must be finite and every deviation finite and above 0"
            )

    @classmethod
    def of(cls, given: Normalisation | tuple[Sequence[float], Sequence[float]]) -> Normalisation:
        """What was given, be it one already or mean and deviation per channel."""
        if isinstance(given, Normalisation):
            return given
        mean, std = given
        return cls(tuple(map(float, mean)), tuple(map(float, std)))

    def apply(
        self, images: Float[Tensor, "*batch channel height width"]
    ) -> Float[Tensor, "*batch channel height width"]:
        """Normalised pixels from pixels in [0, 1]."""
        return (images - _per_channel(self.mean, images)) / _per_channel(self.std, images)

    def invert(
        self, images: Float[Tensor, "*batch channel height width"]
    ) -> Float[Tensor, "*batch channel height width"]:
        """Pixels in the unit of [0, 1] from normalised pixels. Values outside the box stay outside: no clamp."""
        return images * _per_channel(self.std, images) + _per_channel(self.mean, images)

    def bounds(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, "1 channel 1 1"], Float[Tensor, "1 channel 1 1"]]:
        """The lowest and the highest normalised value of each channel: where black (0) and white (1) land."""
        black = torch.zeros(1, len(self.mean), 1, 1, device=device, dtype=dtype)
        return self.apply(black), self.apply(torch.ones_like(black))


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def usual_normalisation(channels: int) -> Normalisation:
    """What stands where nobody says: ImageNet's is of three channels; of others nothing is as common as none at all."""
    return IMAGENET if channels == len(IMAGENET.mean) else Normalisation((0.0,) * channels, (1.0,) * channels)


def _per_channel(values: tuple[float, ...], images: Tensor) -> Float[Tensor, "channel 1 1"]:
    return images.new_tensor(values)[:, None, None]

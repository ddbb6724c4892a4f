"""Images as their cosine transform, each coefficient in units of what photos have there.

The amplitudes of photos fall with the spatial frequency, and differences of colours are smaller than differences of
brightness. In these coordinates a descent finds what is coarse first, and what nothing tells of what is fine stays
where it began, while pixel by pixel it begins with noise: the condition of the problem is better, and so is what it
fills in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Amplitudes are (1 + frequency) to minus this, the frequency in half waves on a side of the image.
_FALLS = 1.5
# Brightness, red against blue, green against both: rows of the rotation, and their amplitudes.
_COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
_SPREADS = (1.0, 0.5, 0.35)


@dataclass(frozen=True)
class Spectrum:
    """The coordinates of images of one shape; orthogonal up to the amplitudes."""

    rows: Float[Tensor, "height height"]
    columns: Float[Tensor, "width width"]
    colours: Float[Tensor, "channel channel"]
    amplitudes: Float[Tensor, "channel height width"]
    """Of root mean square 1 over the frequencies of brightness."""

    @staticmethod
    def of(channels: int, height: int, width: int, device: torch.device) -> Spectrum:
        """For images of this shape, on this device, in single precision."""
        rows, columns = _cosines(height), _cosines(width)
        down, along = (torch.arange(side, dtype=torch.float64) for side in (height, width))
        falling = (1 + torch.hypot(down[:, None], along[None])) ** -_FALLS
        falling = falling / falling.square().mean().sqrt()
        colours, spreads = torch.eye(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
        if channels == len(_COLOURS):
            colours = torch.tensor(_COLOURS, dtype=torch.float64)
            colours, spreads = colours / colours.norm(dim=1, keepdim=True), torch.tensor(_SPREADS, dtype=torch.float64)
        amplitudes = spreads[:, None, None] * falling
        return Spectrum(*(one.to(device, torch.float32) for one in (rows, columns, colours, amplitudes)))

    def coefficients(self, images: Float[Tensor, "image channel height width"]) -> Tensor:
        """Of images, of the same shape."""
        mixed = torch.einsum("oc,bchw->bohw", self.colours, images)
        return self.rows @ mixed @ self.columns.T / self.amplitudes

    def images(self, coefficients: Float[Tensor, "image channel height width"]) -> Tensor:
        """With these coefficients."""
        mixed = self.rows.T @ (coefficients * self.amplitudes) @ self.columns
        return torch.einsum("oc,bohw->bchw", self.colours, mixed)


def _cosines(side: int) -> Float[Tensor, "side side"]:
    """The orthogonal cosine transform (of type II), one frequency a row."""
    places = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(math.pi / side * places[:, None] * (places[None] + 0.5)) * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    return waves

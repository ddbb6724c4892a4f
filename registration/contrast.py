"""Images made comparable: one gray channel, several sizes, local contrast removed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_WINDOW_SHARE = 0.08  # sigma of the window of the local contrast, as a share of the shorter side
_WINDOW_MINIMUM = 1.5  # and in pixels at least


def gray(images: Float[Tensor, "*batch channel height width"]) -> Float[Tensor, "*batch 1 height width"]:
    """Luma of the images in whatever linear scale they come (ITU-R BT.601 weights for three channels)."""
    if images.shape[-3] == 1:
        return images
    import kornia  # where it is used: agents are processes that never register

    luma: Tensor = kornia.color.rgb_to_grayscale(images)
    return luma


def level_sizes(height: int, width: int, largest: int, smallest: int = 14) -> list[tuple[int, int]]:
    """Sizes of a pyramid by halves, coarse first; where the image allows the shorter side is in [smallest, largest]."""
    shrink = min(1.0, largest / min(height, width))
    sizes = [(round(height * shrink), round(width * shrink))]
    while min(sizes[0]) // 2 >= smallest:
        sizes.insert(0, ((sizes[0][0] + 1) // 2, (sizes[0][1] + 1) // 2))
    return sizes


def resize(images: Float[Tensor, "*batch height width"], size: tuple[int, int]) -> Float[Tensor, "*batch rows columns"]:
    """Images at a smaller size (bilinear, antialiased)."""
    if images.shape[-2:] == size:
        return images
    flat = images.reshape(-1, 1, *images.shape[-2:])
    flat = F.interpolate(flat, size=size, mode="bilinear", antialias=True, align_corners=False)
    return flat.reshape(*images.shape[:-2], *size)


def blur(images: Float[Tensor, "*batch height width"], sigma: float) -> Float[Tensor, "*batch height width"]:
    """Gaussian blur with replicated borders; sigma in pixels."""
    side = 2 * round(2.5 * sigma) + 1
    flat = images.reshape(-1, 1, *images.shape[-2:])
    import kornia  # where it is used: agents are processes that never register

    blurred: Tensor = kornia.filters.gaussian_blur2d(flat, (side, side), (sigma, sigma), border_type="replicate")
    return blurred.reshape(images.shape)


def local_contrast(images: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch height width"]:
    """``(g - mean) / deviation`` with both taken in a Gaussian window, so that gain and offset drop out.

    The deviation has a floor, half the deviation over the whole image: flat regions stay quiet instead of turning
    into amplified noise. A constant image gives zeros.
    """
    sigma = max(_WINDOW_MINIMUM, _WINDOW_SHARE * min(images.shape[-2:]))
    detail = images - blur(images, sigma)
    variance = blur(detail * detail, sigma)
    overall = variance.mean(dim=(-2, -1), keepdim=True)
    # float32 leaves about 1e-7 of an image's level as "detail" when it is constant: that is not contrast.
    level = images.square().mean(dim=(-2, -1), keepdim=True)
    detail = torch.where(overall > 1e-10 * level, detail, torch.zeros_like(detail))
    return detail / (variance + 0.25 * overall + 1e-20).sqrt()


def gradients(images: Float[Tensor, "*batch height width"]) -> tuple[Tensor, Tensor]:
    """Central differences along x and y, per unit of [-1, 1]."""
    height, width = images.shape[-2:]
    padded = F.pad(images.reshape(-1, 1, height, width), (1, 1, 1, 1), mode="replicate")[:, 0]
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) * (width / 4)
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) * (height / 4)
    return across.reshape(images.shape), down.reshape(images.shape)

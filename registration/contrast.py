"""Images made comparable: one gray channel, several sizes, local contrast removed."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_WINDOW_SHARE = 0.08  # sigma of the window of the local contrast, as a share of the shorter side
_WINDOW_MINIMUM = 1.5  # and in pixels at least


def gray(images: Float[Tensor, "*batch channel height width"]) -> Float[Tensor, "*batch 1 height width"]:
    """Luma of the images in whatever linear scale they come: BT.601 weights for three channels, else their mean."""
    if images.shape[-3] != 3:
        return images if images.shape[-3] == 1 else images.mean(dim=-3, keepdim=True)
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
    height, width = images.shape[-2:]
    down = _blurring(height, sigma, images.device, images.dtype)
    across = down if width == height else _blurring(width, sigma, images.device, images.dtype)
    return down @ images @ across.T


@lru_cache(maxsize=128)
def _blurring(length: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "length length"]:
    """The matrix that blurs one axis: two products cost less than a convolution on images of this size."""
    reach = round(2.5 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=device)
    window = torch.exp(-0.5 * (offsets.to(dtype) / sigma) ** 2)
    source = (torch.arange(length, device=device)[:, None] + offsets).clamp(0, length - 1)
    matrix = torch.zeros(length, length, device=device, dtype=dtype)
    return matrix.scatter_add_(1, source, (window / window.sum()).expand(length, -1))


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

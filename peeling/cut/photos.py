"""Public photos that a decoder is fitted on: those that come with scikit-image. Never the private ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Photos in colour that lie in scikit-image's own folder: nothing is fetched.
_NAMES = ("astronaut", "chelsea", "coffee", "rocket")
# Colours and brightness are varied: few photos have to stand for many.
_CONTRAST, _BRIGHTNESS = (0.6, 1.2), 0.15


def public_photos(without: Sequence[str] = ()) -> Mapping[str, Float[Tensor, "3 height width"]]:
    """Pictures by name, in [0, 1].

    Args:
        without: Names of pictures that are left out.
    """
    from skimage import data

    pictures = {name: torch.from_numpy(getattr(data, name)()[..., :3].copy()) for name in _NAMES if name not in without}
    return {name: picture.permute(2, 0, 1).float() / 255 for name, picture in pictures.items()}


def photo_crops(
    pictures: Sequence[Float[Tensor, "3 _ _"]], size: tuple[int, int], count: int, seed: int = 0
) -> Float[Tensor, "crop 3 height width"]:
    """Random crops in [0, 1] of all scales, half of them mirrored, with their colours exchanged and varied.

    Args:
        pictures: In [0, 1].
        size: Height and width of the crops.
        count: How many.
        seed: Of what is random.
    """
    random = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    found = []
    for index in range(count):
        picture = pictures[index % len(pictures)]
        height, width = picture.shape[1:]
        share = between(min(1.0, max(size[0] / height, size[1] / width)), 1.0)
        high, wide = max(1, round(share * min(height, width))), max(1, round(share * min(height, width)))
        top, left = round(between(0, height - high)), round(between(0, width - wide))
        crop = picture[None, :, top : top + high, left : left + wide]
        crop = F.interpolate(crop, size, mode="bicubic", antialias=True, align_corners=False)[0]
        if between(0, 1) < 0.5:
            crop = crop.flip(2)
        crop = crop[torch.randperm(3, generator=random)]
        found.append((crop * between(*_CONTRAST) + between(-_BRIGHTNESS, _BRIGHTNESS)).clamp(0, 1))
    return torch.stack(found)

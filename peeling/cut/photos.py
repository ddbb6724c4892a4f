"""Public photos that a decoder is fitted on: those that come with scikit-image, or a folder. Never the private ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...capture.image_files import PHOTOS, ImageError, Pixels, of_channels, read_image
from ...capture.image_folder import image_names, list_images
from ...capture.shipped_photos import read_shipped_photo

FEWEST_PHOTOS = 2
"""From one alone a decoder learns that photo's colours."""
SHIPPED = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle", "camera", "brick", "gravel")
"""Photos that lie in scikit-image's own folder, so that nothing is fetched: the first four that are not left out are
used."""
_MOST_SHIPPED = 4
# Of a folder: spread evenly over it, and no more numbers than half a gigabyte holds.
_MOST_OF_FOLDER, _MOST_NUMBERS = 64, 2**27
# Times the images' side that a picture is large at most: crops are of all scales.
_LARGEST, _LARGEST_SIDE = 2, 256
# Channels of a picture as a file has it: grey or in colour.
_CHANNELS = (1, 3)
# Colours and brightness are varied: few photos have to stand for many.
_CONTRAST, _BRIGHTNESS = (0.6, 1.2), 0.15
# A picture in grey is given colours, in which channels differ by at most this factor: no photo has none.
_TINT = (0.7, 1.0)

Photos = Mapping[str, Float[Tensor, "channel _ _"]]
"""Pictures by name, in [0, 1]."""


def public_photos(without: Sequence[str] = (), channels: int = 3) -> Photos:
    """Photos that come with scikit-image.

    Args:
        without: Names of pictures that are left out.
        channels: 3 for colour, 1 for grey.
    """
    names = [name for name in SHIPPED if name not in without][:_MOST_SHIPPED]
    return {name: _tensor(of_channels(Image.fromarray(read_shipped_photo(name)), channels, name)) for name in names}


def decoder_photos(source: str, without: Sequence[str], shape: Sequence[int]) -> Photos:
    """The photos that a decoder of images of this shape is fitted on.

    Args:
        source: A folder, or ``photos`` for those that come with scikit-image.
        without: Names of pictures that are left out.
        shape: Channels, height and width of the images.

    Raises:
        ImageError: The folder cannot be read, or too few are left.
    """
    channels, size = shape[0], max(shape[1:])
    if channels not in _CHANNELS:
        raise ImageError(
            f"peeling.photos={source}: a decoder is of images of 1 or 3 channels, and these have {channels}"
        )
    if source == PHOTOS:
        found = public_photos(without, channels)
    else:
        found = _of_folder(source, without, channels, max(_LARGEST * size, _LARGEST_SIDE))
    if len(found) < FEWEST_PHOTOS:
        raise ImageError(
            f"peeling.photos={source} has {len(found)} photos that are not left out (the private ones are): give a "
            f"folder with at least {FEWEST_PHOTOS} others, or the word {PHOTOS}"
        )
    return found


def _of_folder(source: str, without: Sequence[str], channels: int, side: int) -> Photos:
    files = list_images(Path(source).expanduser())
    named = list(zip(image_names(files), files, strict=True))
    most = max(FEWEST_PHOTOS, min(_MOST_OF_FOLDER, _MOST_NUMBERS // (channels * side**2)))
    step = max(1.0, len(named) / most)
    # What is left out has no other in its place: whoever names the private ones has looked at these alone.
    chosen = [named[int(index * step)] for index in range(min(len(named), most))]
    return {
        name: _small(_tensor(read_image(file.path, channels, (side, side))), side)
        for name, file in chosen
        if name not in without
    }


def _tensor(pixels: Pixels) -> Float[Tensor, "channel _ _"]:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _small(picture: Float[Tensor, "channel _ _"], side: int) -> Float[Tensor, "channel _ _"]:
    """No more pixels than a square of this side has."""
    height, width = picture.shape[1:]
    share = side / (height * width) ** 0.5
    if share >= 1:
        return picture
    size = max(1, round(share * height)), max(1, round(share * width))
    return F.interpolate(picture[None], size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


def photo_crops(
    pictures: Sequence[Float[Tensor, "channel _ _"]], size: tuple[int, int], count: int, seed: int = 0
) -> Float[Tensor, "crop channel height width"]:
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

    grey = [bool((picture == picture[:1]).all()) for picture in pictures]
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
        crop = crop[torch.randperm(len(crop), generator=random)]
        if grey[index % len(pictures)] and len(crop) > 1:
            crop = crop * torch.tensor([between(*_TINT) for _ in crop])[:, None, None]
        found.append((crop * between(*_CONTRAST) + between(-_BRIGHTNESS, _BRIGHTNESS)).clamp(0, 1))
    return torch.stack(found)

"""Images for the simulated client: photos that are on every machine after the install, or any folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..image_files import PHOTOS as PHOTOS
from ..image_files import ImageError as ImageError
from ..image_files import Pixels, of_channels, read_image
from ..image_folder import ImageFile, image_names, list_images
from ..shipped_photos import read_shipped_photo


@dataclass(frozen=True)
class _Photo:
    """A photo, or a fixed part of one: rows and columns ``top:bottom, left:right``."""

    name: str
    source: str
    box: tuple[int, int, int, int] | None = None


# All of these files are inside scikit-image's wheel; none is downloaded. The largest serve again in parts.
_PHOTOS = (
    _Photo("astronaut", "astronaut"),
    _Photo("chelsea", "chelsea"),
    _Photo("coffee", "coffee"),
    _Photo("rocket", "rocket"),
    _Photo("motorcycle", "motorcycle"),
    _Photo("retina", "retina"),
    _Photo("astronaut_suit", "astronaut", (200, 512, 0, 312)),
    _Photo("motorcycle_wheel", "motorcycle", (220, 500, 20, 300)),
    _Photo("immunohistochemistry", "immunohistochemistry"),
    _Photo("coffee_spoon", "coffee", (0, 250, 300, 550)),
    _Photo("chelsea_eyes", "chelsea", (60, 220, 130, 290)),
    _Photo("rocket_tower", "rocket", (0, 220, 200, 420)),
    _Photo("astronaut_face", "astronaut", (0, 220, 120, 340)),
    _Photo("coffee_table", "coffee", (150, 400, 0, 250)),
    _Photo("motorcycle_shed", "motorcycle", (0, 250, 450, 700)),
    _Photo("astronaut_shuttle", "astronaut", (0, 200, 312, 512)),
    _Photo("chelsea_ear", "chelsea", (0, 150, 40, 190)),
    _Photo("motorcycle_seat", "motorcycle", (150, 400, 380, 630)),
    _Photo("rocket_ground", "rocket", (207, 427, 400, 620)),
    _Photo("retina_disc", "retina", (450, 950, 150, 650)),
    _Photo("astronaut_patch", "astronaut", (300, 512, 280, 492)),
    _Photo("hubble_deep_field", "hubble_deep_field"),
    _Photo("coffee_cup", "coffee", (80, 320, 180, 420)),
    _Photo("chelsea_nose", "chelsea", (130, 290, 170, 330)),
)


def count_images(source: str) -> int:
    """How many images the source of `load_images` holds.

    Raises:
        ImageError: The folder is missing, unreadable or holds no image.
    """
    return len(_PHOTOS) if source == PHOTOS else len(_files(source))


def class_labels(source: str, count: int) -> tuple[int, ...] | None:
    """The classes of the first ``count`` images, where the source is a folder of class folders; None otherwise.

    Raises:
        ImageError: The folder is missing, unreadable or holds no image.
    """
    files = [] if source == PHOTOS else _files(source)[:count]
    labels = tuple(file.label for file in files if file.label is not None)
    return labels or None


def load_images(
    source: str, count: int, size: int | Sequence[int]
) -> tuple[Float[Tensor, "batch channel height width"], tuple[str, ...]]:
    """The first ``count`` images of the source and their names, all different.

    Of each image the largest centred part of the wanted proportions is resized by antialiased bilinear interpolation;
    an image that has the wanted size already keeps its pixels to the bit.

    Args:
        source: ``"photos"``, or a folder whose image files are taken in order of name. Where they lie in folders, one
            per class, these are taken one after the other in order of name.
        count: How many, at least 1.
        size: Side of square RGB images in pixels, or channels, height and width.

    Returns:
        Images in [0, 1], shape (count, channels, height, width), and one name each.

    Raises:
        ImageError: What is missing or which file cannot be read, in one sentence.
    """
    channels, height, width = (3, size, size) if isinstance(size, int) else size
    if min(count, channels, height, width) < 1:
        raise ImageError(
            f"asked for {count} images of {channels} channels and {height}x{width} pixels; all must be at least 1"
        )
    shape = channels, height, width
    pixels, names = _photos(count, channels) if source == PHOTOS else _folder(source, count, shape)
    # One at a time: the whole images of a folder together may not fit into memory.
    return torch.cat([_resized(image, height, width) for image in pixels]), names


def _photos(count: int, channels: int) -> tuple[Iterable[Pixels], tuple[str, ...]]:
    if count > len(_PHOTOS):
        raise ImageError(
            f"the built-in photos are {len(_PHOTOS)} and the batch needs {count}; lower client.batch_size or give a "
            "folder with client.images"
        )
    chosen = _PHOTOS[:count]
    whole = {photo.source: read_shipped_photo(photo.source) for photo in chosen}
    parts = []
    for photo in chosen:
        image = whole[photo.source]
        if photo.box is not None:
            top, bottom, left, right = photo.box
            image = image[top:bottom, left:right]
        parts.append(of_channels(Image.fromarray(image), channels, photo.name))
    return parts, tuple(photo.name for photo in chosen)


def _files(source: str) -> list[ImageFile]:
    return list_images(Path(source).expanduser())


def _folder(source: str, count: int, shape: tuple[int, int, int]) -> tuple[Iterable[Pixels], tuple[str, ...]]:
    files = _files(source)
    if len(files) < count:
        raise ImageError(
            f"the image folder {source!r} holds {len(files)} images and the batch needs {count}; "
            "add images or lower client.batch_size"
        )
    files = files[:count]
    channels, height, width = shape
    return (read_image(file.path, channels, (height, width)) for file in files), image_names(files)


def shipped_sources(names: Sequence[str]) -> tuple[str, ...]:
    """The photos of scikit-image, by its names, that photos of these names are, or are parts of."""
    return tuple(dict.fromkeys(photo.source for photo in _PHOTOS if photo.name in names))


def centred(image: Float[Tensor, "channel _ _"], height: int, width: int) -> Float[Tensor, "channel {height} {width}"]:
    """The largest centred part of the wanted proportions, at the wanted size."""
    whole_height, whole_width = image.shape[-2:]
    # Whole numbers, so that a square is cut as exactly as any other part.
    rows = min(whole_height, max(1, whole_width * height // width))
    columns = min(whole_width, max(1, whole_height * width // height))
    top, left = (whole_height - rows) // 2, (whole_width - columns) // 2
    part = image[None, :, top : top + rows, left : left + columns]
    if (rows, columns) == (height, width):
        return part[0].contiguous()
    resized = F.interpolate(part, size=(height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    return resized.clamp(0, 1)  # weights that sum to one do so up to rounding


def _resized(pixels: Pixels, height: int, width: int) -> Float[Tensor, "1 channel {height} {width}"]:
    return centred(torch.from_numpy(np.array(pixels)).permute(2, 0, 1), height, width)[None]

"""Images for the simulated client: photos that are on every machine after the install, or any folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

PHOTOS = "photos"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
LARGEST_PIXEL_COUNT = 100_000_000

Pixels = UInt8[np.ndarray, "height width 3"]


class ImageError(ValueError):
    """Images that cannot be loaded."""


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
    return len(_PHOTOS) if source == PHOTOS else len(_files(Path(source).expanduser()))


def load_images(source: str, count: int, size: int) -> tuple[Float[Tensor, "batch 3 {size} {size}"], tuple[str, ...]]:
    """The first ``count`` images of the source and their names, all different.

    Each image's largest centred square is resized by antialiased bilinear interpolation.

    Args:
        source: ``"photos"``, or a folder whose image files are taken in order of name.
        count: How many, at least 1.
        size: Side of the result in pixels.

    Returns:
        Images in [0, 1], shape (count, 3, size, size), and one name each.

    Raises:
        ImageError: What is missing or which file cannot be read, in one sentence.
    """
    if count < 1 or size < 1:
        raise ImageError(f"asked for {count} images of {size} pixels; both numbers must be at least 1")
    pixels, names = _photos(count) if source == PHOTOS else _folder(Path(source).expanduser(), count)
    return torch.cat([_square(image, size) for image in pixels]), names


def _photos(count: int) -> tuple[list[Pixels], tuple[str, ...]]:
    if count > len(_PHOTOS):
        raise ImageError(
            f"the built-in photos are {len(_PHOTOS)} and the batch needs {count}; lower client.batch_size or give a "
            "folder with client.images"
        )
    chosen = _PHOTOS[:count]
    whole = {photo.source: _read_photo(photo.source) for photo in chosen}
    parts = []
    for photo in chosen:
        image = whole[photo.source]
        if photo.box is not None:
            top, bottom, left, right = photo.box
            image = image[top:bottom, left:right]
        parts.append(image)
    return parts, tuple(photo.name for photo in chosen)


def _read_photo(source: str) -> Pixels:
    from skimage import data

    if source == "motorcycle":
        read_pair: Callable[[], tuple[Pixels, ...]] = data.stereo_motorcycle
        left = read_pair()[0]
        return np.ascontiguousarray(left[..., :3])
    read: Callable[[], Pixels] = getattr(data, source)
    return np.ascontiguousarray(read()[..., :3])


def _files(folder: Path) -> list[Path]:
    """The folder's image files in order of name, at least one."""
    if not folder.is_dir():
        reason = "is a file" if folder.exists() else "does not exist"
        raise ImageError(f"the image folder {str(folder)!r} {reason}; give a folder of images, or the word {PHOTOS!r}")
    try:
        files = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
    except OSError as error:
        raise ImageError(f"the image folder {str(folder)!r} cannot be read ({error.strerror})") from error
    if not files:
        raise ImageError(f"the image folder {str(folder)!r} holds no image ({', '.join(sorted(SUFFIXES))})")
    return files


def _folder(folder: Path, count: int) -> tuple[list[Pixels], tuple[str, ...]]:
    files = _files(folder)
    if len(files) < count:
        raise ImageError(
            f"the image folder {str(folder)!r} holds {len(files)} images and the batch needs {count}; "
            "add images or lower client.batch_size"
        )
    files = files[:count]
    names = [path.stem for path in files]
    if len(set(names)) < count:
        names = [path.name for path in files]
    return [_read_file(path) for path in files], tuple(names)


def _read_file(path: Path) -> Pixels:
    """RGB pixels of one file, upright."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice its limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Damaged metadata is not worth a stop: the pixels decide.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path) as image:
                if image.width * image.height > LARGEST_PIXEL_COUNT:
                    raise ImageError(
                        f"the image {str(path)!r} has {image.width}x{image.height} pixels; "
                        f"at most {LARGEST_PIXEL_COUNT:,} are allowed"
                    )
                return _rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(f"the image {str(path)!r} is too large to be opened safely; make it smaller") from error
    # A hostile or damaged file makes Pillow's decoders raise nearly anything.
    except Exception as error:
        raise ImageError(
            f"the image {str(path)!r} cannot be read ({type(error).__name__}: {error}); repair or remove it"
        ) from error


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion would cut off everything above 255.
        grey = np.asarray(image, dtype=np.float64) / 65_535 * 255
        return np.repeat(grey.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _square(pixels: Pixels, size: int) -> Float[Tensor, "1 3 {size} {size}"]:
    """The largest centred square at the wanted size, in [0, 1]."""
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float()[None] / 255
    side = min(image.shape[-2:])
    top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
    square = image[..., top : top + side, left : left + side]
    return F.interpolate(square, size=(size, size), mode="bilinear", antialias=True, align_corners=False)

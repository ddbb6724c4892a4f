"""One image file as pixels in [0, 1]. The file may come from anyone, and its numbers may be of any range."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageOps

from ..foreign_text import safe
from ..refusal import Refusal

PHOTOS = "photos"
"""The source of images that is no folder: the photos that scikit-image ships."""
SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
"""File types that are read."""
LARGEST_PIXEL_COUNT = 200_000_000
# What a small file may claim: an evenly coloured picture of any size packs into a few kilobytes.
_FREE_PIXELS = {"WEBP": 12_000_000}
_USUAL_FREE_PIXELS = 24_000_000
# A photo has a byte for about 4 pixels as a JPEG, and for less in other formats.
_PIXELS_PER_BYTE = {"JPEG": 16, "MPO": 16}
# Above, an image is made smaller by whole steps before its numbers become floating-point ones.
_LARGE = 4_000_000
_MARGIN = 8
"""Times that an image is still larger than wanted when it is made smaller roughly, for the exact resizing."""

# Pillow tries every decoder that it has on a file, whatever its name; some of them start other programs (Ghostscript).
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM")
# Files that somebody took for images, and that would be left out in silence.
_UNREAD_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".jpf", ".svg", ".eps", ".ps", ".psd", ".xcf", ".ico"}
    | {".tga", ".pcx", ".pfm", ".pam", ".exr", ".hdr", ".dds", ".sgi", ".rgb", ".ras", ".xbm", ".xpm", ".fits", ".fit"}
    | {".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".dcm", ".dicom", ".nii", ".mha"}
)
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"8BPS", b"\0\0\0\x0cjP  ")
_LONGEST_SIGNATURE = 12
_LONGEST_REASON = 300
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_OWN_CHANNELS = {2: ("LA",), 4: ("RGBA", "CMYK")}
"""Modes whose further channels are no colour: only a file that has them can give them."""
_ORIENTATION = 0x0112
_EIGHT_BITS, _SIXTEEN_BITS = 255, 65_535
_TOO_DARK_OF_8 = 32
_TOO_DARK_OF_16 = 16_384

Pixels = Float32[np.ndarray, "height width channel"]


class ImageError(Refusal, ValueError):
    """Images that cannot be loaded."""


def read_image(path: Path, channels: int = 3, size: tuple[int, int] | None = None) -> Pixels:
    """The pixels of one file, upright, in [0, 1].

    Args:
        path: Of a PNG, JPEG, BMP, WebP, TIFF, GIF or PPM file.
        channels: 1 grey, 2 grey with alpha, 3 RGB, 4 RGB with alpha, or CMYK.
        size: Height and width for which it is read: of a far larger image fewer pixels are then decoded, at least
            eight times as many in each direction.

    Raises:
        ImageError: The file cannot be read, claims more pixels than its bytes can tell, holds several images, or
            numbers whose range nothing tells.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own limit knows nothing of the file's size; ours comes before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # Damaged metadata is not worth a stop: the pixels decide.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path, formats=_FORMATS) as image:
                _require_one(image, path)
                if size is not None:
                    # Either way up: the orientation is undone later.
                    side = _MARGIN * max(size)
                    image.draft(None, (side, side))
                return _to_pixels(image, path, channels, size)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image {str(path)!r} is too large to be opened safely; make it smaller") from error
    # A hostile or damaged file makes Pillow's decoders raise nearly anything.
    except Exception as error:
        reason = safe(f"{type(error).__name__}: {error}", _LONGEST_REASON)
        raise ImageError(f"the image {str(path)!r} cannot be read ({reason}); repair or remove it") from error


def of_channels(image: Image.Image, channels: int, name: str, size: tuple[int, int] | None = None) -> Pixels:
    """An image of 8 bits with the wanted channels, in [0, 1].

    Args:
        image: Upright.
        channels: As in `read_image`.
        name: For errors.
        size: Height and width that are wanted in the end; a large image is brought near them by averaging.

    Raises:
        ImageError: It does not have them.
    """
    own = _OWN_CHANNELS.get(channels)
    if channels not in _MODES:
        raise ImageError(f"images of {channels} channels cannot be read from files; give 1 (grey), 3 (RGB) or 4 (RGBA)")
    if own is not None and image.mode not in own:
        raise ImageError(
            f"the image {name!r} is of mode {image.mode}, and {channels} channels are wanted; give one of mode "
            f"{' or '.join(own)}"
        )
    # `convert` makes a copy also where there is nothing to do.
    coloured = image if own is not None or image.mode == _MODES[channels] else image.convert(_MODES[channels])
    found = np.asarray(_reduced(coloured, size), dtype=np.float32) / _EIGHT_BITS
    return found.reshape(*found.shape[:2], channels)


def _reduced(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    if size is None or image.width * image.height <= _LARGE:
        return image
    height, width = size
    factor = min(image.height // (_MARGIN * height), image.width // (_MARGIN * width))
    return image.reduce(factor) if factor > 1 else image


def looks_like_an_image(path: Path) -> bool:
    """Whether somebody probably takes a file for images although its type is not one that is read."""
    if path.suffix.lower() in _UNREAD_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            start = file.read(_LONGEST_SIGNATURE)
    except OSError:
        return False
    # RIFF is of sounds too, and ftyp of films.
    known = start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
    return known or (start[4:8] == b"ftyp" and start[8:] in (b"heic", b"heix", b"mif1", b"avif"))


def _require_one(image: Image.Image, path: Path) -> None:
    kind = str(image.format)
    free = _FREE_PIXELS.get(kind, _USUAL_FREE_PIXELS) // (1 if image.mode.partition(";")[0] not in _BY_RANGE else 3)
    most = min(LARGEST_PIXEL_COUNT, free + _PIXELS_PER_BYTE.get(kind, 1) * path.stat().st_size)
    if image.width * image.height > most:
        raise ImageError(
            f"the image {str(path)!r} has {image.width}x{image.height} pixels; at most {most:,} are read of a file of "
            "its size; make it smaller"
        )
    frames = getattr(image, "n_frames", 1)
    # A phone's JPEG carries previews of the same photo (MPO).
    if frames > 1 and image.format != "MPO":
        raise ImageError(f"the image {str(path)!r} holds {frames} images; give each one a file of its own")


def _to_pixels(image: Image.Image, path: Path, channels: int, size: tuple[int, int] | None) -> Pixels:
    upright = _upright(image)
    read = _BY_RANGE.get(image.mode.partition(";")[0])
    if read is None:
        _require_bright_colours(image, upright, path)
        return of_channels(upright, channels, str(path), size)
    if channels in _OWN_CHANNELS:
        raise ImageError(f"the image {str(path)!r} is grey, and {channels} channels are wanted; give one that has them")
    grey = read(np.asarray(upright), image, path).astype(np.float32, copy=False)
    if grey.size > _LARGE:
        grey = np.asarray(_reduced(Image.fromarray(grey), size))
    return np.repeat(grey[..., None], channels, axis=2)


def _upright(image: Image.Image) -> Image.Image:
    """The same image, turned in its place: a copy beside it would take as much memory again."""
    image.load()
    if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _read_floats(values: np.ndarray, image: Image.Image, path: Path) -> np.ndarray:
    """Floats in [0, 1] as they are; those in 0..255 divided by it."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return values
    if low >= 0 and _TOO_DARK_OF_8 <= high <= _EIGHT_BITS:
        return values / _EIGHT_BITS
    raise ImageError(
        f"the image {str(path)!r} holds floating-point numbers from {low:.4g} to {high:.4g}; give numbers in "
        f"[0, 1], or in 0 to {_EIGHT_BITS} with a largest one of at least {_TOO_DARK_OF_8}"
    )


def _read_integers(values: np.ndarray, image: Image.Image, path: Path) -> np.ndarray:
    """Whole numbers of more than 8 bits."""
    # Pillow opens 16-bit PNG and PPM files in this mode too, and has brought the latter to the full range.
    if image.format == "PPM":
        return _shares(values, _SIXTEEN_BITS)
    if image.mode != "I" or image.format == "PNG":
        return _read_sixteen_bits(values, image, path)
    low, high = int(values.min()), int(values.max())
    if low == high == 0 or (low >= 0 and _TOO_DARK_OF_8 <= high <= _EIGHT_BITS):
        return _shares(values, _EIGHT_BITS)
    raise ImageError(
        f"the image {str(path)!r} holds integers of more than 8 bits from {low} to {high}; give numbers in "
        f"0 to {_EIGHT_BITS} with a largest one of at least {_TOO_DARK_OF_8}, or save it with 8 or 16 bits"
    )


def _read_sixteen_bits(values: np.ndarray, image: Image.Image, path: Path) -> np.ndarray:
    # The TIFF tags BitsPerSample and MaxSampleValue; in a PNG nothing tells it.
    tags, high = getattr(image, "tag_v2", {}), int(values.max())
    bits = _first(tags.get(258)) or 16
    told = [top for top in (_first(tags.get(281)), 2**bits - 1) if top is not None and high <= top < _SIXTEEN_BITS]
    if told:
        return _shares(values, told[0])
    if 0 < high < _TOO_DARK_OF_16:
        raise ImageError(_dark(path, high))
    return _shares(values, _SIXTEEN_BITS)


def _shares(values: np.ndarray, top: int) -> np.ndarray:
    """Whole numbers of at most 16 bits, divided: half the memory that numpy's own quotient of them takes."""
    return np.divide(values, top, dtype=np.float32)


def _first(value: object) -> int | None:
    value = value[0] if isinstance(value, tuple) and value else value
    return int(value) if isinstance(value, int | float) and 0 < value <= _SIXTEEN_BITS else None


def _require_bright_colours(image: Image.Image, upright: Image.Image, path: Path) -> None:
    """A colour PNG of 16 bits, of which Pillow has kept the upper 8."""
    if image.format != "PNG" or image.mode not in ("RGB", "RGBA") or not _has_sixteen_bits(path):
        return
    high = int(np.asarray(upright)[..., :3].max())
    if 256 * (high + 1) <= _TOO_DARK_OF_16:
        raise ImageError(_dark(path, 256 * (high + 1) - 1))


def _has_sixteen_bits(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(25)
    return header[12:16] == b"IHDR" and header[24] == 16


def _dark(path: Path, high: int) -> str:
    return (
        f"the image {str(path)!r} holds 16-bit numbers of at most {high} of {_SIXTEEN_BITS}: they are probably of 10, "
        "12 or 14 bits, and nothing in the file tells it; scale them to the full range, or save the image with 8 bits"
    )


_BY_RANGE: dict[str, Callable[[np.ndarray, Image.Image, Path], np.ndarray]] = {
    "F": _read_floats,
    "I": _read_integers,
}
"""How the numbers of a Pillow mode are brought to [0, 1], where they do not have 8 bits."""

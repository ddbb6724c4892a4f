"""Images of the largest sizes that are read, and just beyond: seconds and memory of reading one for a batch of 32 px.

python -m benchmarks.fault_images                 # into benchmarks/results/fault_images.json; Linux
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from gradinversion.capture import ImageError, load_images
from PIL import Image

from .faults import ALLOWED_BYTES, memory

RESULTS = Path(__file__).parent / "results" / "fault_images.json"
_SIDE = 32


@dataclass(frozen=True)
class Row:
    """One file."""

    what: str
    megapixels: float
    file_megabytes: float
    read: bool
    """Else it was refused with a sentence."""
    seconds: float
    megabytes: float
    """Above what the process held before."""
    within: bool
    """Within four times the file and 200 MB."""


def flat(side: int) -> Image.Image:
    """One colour: a file of a few kilobytes."""
    return Image.new("RGB", (side, side), (10, 200, 90))


def turned(side: int) -> Image.Image:
    """One colour with a fourth channel, lying on its side."""
    image = Image.new("RGBA", (side, side), (10, 200, 90, 255))
    image.getexif()[0x0112] = 6
    return image


def noise(side: int) -> Image.Image:
    """What no format packs: a large file."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def deep(side: int) -> Image.Image:
    """Grey of 16 bits."""
    return Image.fromarray(np.full((side, side), 40_000, dtype=np.uint16))


def deep_noise(side: int) -> Image.Image:
    """Grey of 16 bits that no format packs."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (side, side), dtype=np.uint16))


def floating(side: int) -> Image.Image:
    """Grey in floating-point numbers."""
    return Image.fromarray(np.full((side, side), 0.5, dtype=np.float32))


KINDS: dict[str, tuple[Callable[[int], Image.Image], str, int]] = {
    "PNG, one colour": (flat, "png", 4_890),
    "PNG, one colour, beyond": (flat, "png", 4_950),
    "PNG with alpha, on its side": (turned, "png", 4_890),
    "PNG, noise": (noise, "png", 5_000),
    "JPEG, one colour": (flat, "jpg", 5_500),
    "JPEG, noise": (noise, "jpg", 9_000),
    "WebP, one colour": (flat, "webp", 3_450),
    "WebP, one colour, beyond": (flat, "webp", 4_000),
    "TIFF, noise": (noise, "tif", 5_500),
    "BMP, noise": (noise, "bmp", 5_500),
    "GIF, one colour": (flat, "gif", 4_890),
    "PNG of 16 bits": (deep, "png", 2_820),
    "PNG of 16 bits, beyond": (deep, "png", 2_850),
    "PNG of 16 bits, noise": (deep_noise, "png", 6_000),
    "TIFF of floating point": (floating, "tif", 6_500),
}


def measure(what: str, folder: Path) -> Row:
    """Write one file, and read it.

    Args:
        what: Of `KINDS`.
        folder: Empty.
    """
    make, suffix, side = KINDS[what]
    path = folder / f"a.{suffix}"
    make(side).save(path)
    size = path.stat().st_size
    before, began = memory(reset=True), time.perf_counter()
    try:
        load_images(str(folder), 1, _SIDE)
        read = True
    except ImageError:
        read = False
    seconds, used = time.perf_counter() - began, memory(reset=False) - before
    within = used <= 4 * size + ALLOWED_BYTES
    return Row(what, side**2 / 1e6, round(size / 2**20, 2), read, round(seconds, 2), round(used / 2**20, 1), within)


def table(rows: list[Row]) -> str:
    """For BENCHMARKS.md."""
    lines = ["| image | megapixels | file, MB | read | s | MB | within |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        read, within = ("yes" if flag else "no" for flag in (row.read, row.within))
        lines.append(
            f"| {row.what} | {row.megapixels:.1f} | {row.file_megabytes:g} | {read} | {row.seconds:g} "
            f"| {row.megabytes:g} | {within} |"
        )
    return "\n".join(lines)


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as first:
        flat(8).save(Path(first) / "a.png")
        load_images(first, 1, _SIDE)  # what every reading needs, once
    for what in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(what, Path(folder)))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()

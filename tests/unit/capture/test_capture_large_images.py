"""Large images, and files that claim to be: what is decoded is bounded before it is."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from gradinversion.audit import pool as pools
from gradinversion.capture import ImageError, PrivateBatch, load_images
from gradinversion.capture.client import images as module
from gradinversion.capture.image_files import read_image
from PIL import Image


def waves(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    parts = (np.sin(rows / 90), np.cos(columns / 70), np.sin((rows + columns) / 120))
    return Image.fromarray((127 + 100 * np.stack(parts, -1)).astype(np.uint8))


def claiming(path: Path, side: int, body: bytes = b"") -> Path:
    """A PNG of this side, of a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("side", [5_000, 9_400, 12_000, 100_000])
def test_a_small_file_may_not_claim_a_large_image(tmp_path: Path, side: int) -> None:
    claiming(tmp_path / "bomb.png", side)
    with pytest.raises(ImageError, match=r"bomb\.png.*(at most [\d,]+ are read of a file of its size|too large)"):
        load_images(str(tmp_path), 1, 32)


LIMITED = """
import resource, sys
import torch
from gradinversion.capture import ImageError, load_images
from gradinversion.capture import image_files
from PIL import Image
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
images, _ = load_images(sys.argv[1], 4, 32)
assert images.shape == (4, 3, 32, 32)
"""


def test_images_of_the_largest_size_that_is_read_are_held_one_at_a_time(tmp_path: Path) -> None:
    for index in range(4):
        Image.new("RGB", (4_000, 4_000), (index, 50, 100)).save(tmp_path / f"{index}.png", compress_level=1)
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_large_image_is_the_same_image(tmp_path: Path, suffix: str, turned: bool) -> None:
    picture = waves(1_800, 2_600)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    picture.save(tmp_path / f"a.{suffix}", quality=95, exif=exif)
    found, _ = load_images(str(tmp_path), 1, (3, 48, 32))
    whole = read_image(tmp_path / f"a.{suffix}")
    exact = module._resized(whole, 48, 32)
    assert found.shape == exact.shape == (1, 3, 48, 32)
    assert float((found - exact).abs().max()) < 0.03
    assert float((found - exact).abs().mean()) < 0.01


@pytest.mark.parametrize("bits", [16, 32])
def test_a_large_image_of_many_bits_is_brought_near_its_size_and_the_same(tmp_path: Path, bits: int) -> None:
    grey = np.asarray(waves(2_100, 2_600)).mean(2) / 255
    numbers = (grey * 65_535).astype(np.uint16) if bits == 16 else grey.astype(np.float32)
    Image.fromarray(numbers).save(tmp_path / "a.tif")
    found, _ = load_images(str(tmp_path), 1, (3, 42, 52))
    exact = grey.reshape(42, 50, 52, 50).mean((1, 3))
    assert found.shape == (1, 3, 42, 52)
    assert float((found - torch.from_numpy(exact)).abs().max()) < 0.02
    assert read_image(tmp_path / "a.tif", size=(42, 52)).shape == (350, 434, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_an_image_that_lies_on_its_side_is_turned(tmp_path: Path, mode: str) -> None:
    picture = waves(30, 20).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    turned = np.rot90(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255, -1)
    assert np.array_equal(read_image(tmp_path / "a.png"), turned)


def test_an_image_that_is_not_far_larger_keeps_its_pixels(tmp_path: Path) -> None:
    picture = waves(60, 60)
    picture.save(tmp_path / "a.jpg", quality=95)
    exact = torch.from_numpy(read_image(tmp_path / "a.jpg")).permute(2, 0, 1)[None]
    assert torch.equal(load_images(str(tmp_path), 1, 60)[0], exact)


def test_postscript_under_another_name_is_not_rendered(tmp_path: Path) -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file closefile\nshowpage\n"
    (tmp_path / "a.png").write_bytes(eps)
    with pytest.raises(ImageError, match=r"a\.png' cannot be read \(UnidentifiedImageError"):
        load_images(str(tmp_path), 1, 32)


def test_a_pool_is_bounded_by_its_pixels_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(6):
        Image.new("RGB", (8, 8), (40 * index, 0, 0)).save(tmp_path / f"{index}.png")
    monkeypatch.setattr(pools, "_MOST_NUMBERS", 4 * 3 * 8 * 8)
    private = PrivateBatch(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), ("a", "b"))
    pool = pools.load_pool(str(tmp_path), private)
    assert len(pool) == 4
    assert "only the first 4 of the pool's 6 images were used" in pools.describe(pool)

"""Single image files: their depth, their range, their type."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from gradinversion.capture import ImageError, count_images, load_images
from PIL import Image


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


def gradient_picture(height: int = 12, width: int = 20) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 10, columns * 10, 255 - columns], axis=-1).astype(np.uint8)


RAMP = np.tile(np.linspace(0, 255, 64), (64, 1))


@pytest.mark.parametrize(
    ("pixels", "mean"),
    [
        (RAMP.astype(np.float32), 0.5),
        ((RAMP / 255).astype(np.float32), 0.5),
        ((RAMP / 2550).astype(np.float32), 0.05),
        (np.zeros((64, 64), np.float32), 0.0),
        (RAMP.astype(np.int32), 0.498),
        (np.zeros((64, 64), np.int32), 0.0),
        ((RAMP * 257).astype(np.uint16), 0.5),
        (np.zeros((64, 64), np.uint16), 0.0),
        (RAMP > 127, 0.5),
    ],
    ids=["float 255", "float 1", "dark float", "black float", "int32", "black int32", "16 bits", "black 16", "1 bit"],
)
def test_every_depth_comes_out_as_bright_as_it_is(tmp_path: Path, pixels: np.ndarray, mean: float) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    images, _ = load_images(str(tmp_path), 1, 64)
    assert float(images.mean()) == pytest.approx(mean, abs=1e-3)
    grey, _ = load_images(str(tmp_path), 1, (1, 64, 64))
    torch.testing.assert_close(grey.expand(-1, 3, -1, -1), images)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        ((RAMP * 257).astype(np.float32), r"floating-point numbers from 0 to 6\.554e\+04; give numbers in \[0, 1\]"),
        ((RAMP / 127).astype(np.float32), r"floating-point numbers from 0 to 2\.008"),
        ((RAMP / 255 - 0.5).astype(np.float32), r"floating-point numbers from -0\.5 to 0\.5"),
        (np.full((8, 8), np.nan, np.float32), "floating-point numbers from nan"),
        ((RAMP * 16).astype(np.int32), "integers of more than 8 bits from 0 to 4080"),
        ((RAMP > 127).astype(np.int32), "from 0 to 1; give numbers in 0 to 255 with a largest one of at least 32"),
        ((RAMP - 128).astype(np.int32), "from -128 to 127"),
        ((RAMP * 16).astype(np.uint16), "16-bit numbers of at most 4080 of 65535: they are probably of 10, 12 or 14"),
        ((RAMP * 64).astype(np.uint16), "at most 16320 of 65535"),
    ],
)  # fmt: skip
def test_a_range_that_nothing_tells_is_refused_by_name(tmp_path: Path, pixels: np.ndarray, words: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif' holds .*" + words):
        load_images(str(tmp_path), 1, 8)


def test_twelve_bits_in_a_png(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (RAMP * 16).astype(np.uint16))
    with pytest.raises(ImageError, match=r"a\.png' holds 16-bit numbers of at most 4080 of 65535"):
        load_images(str(tmp_path), 1, 8)


@pytest.mark.parametrize(("tag", "value"), [(281, 4095), (258, 12)], ids=["MaxSampleValue", "BitsPerSample"])
def test_a_tiff_that_tells_its_largest_value_is_read(tmp_path: Path, tag: int, value: int) -> None:
    if tag == 258:
        values = np.array([0, 4095, 2048, 1024], np.uint16)  # packed: two samples in three bytes
        packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(2, 2).tolist())
        write_tiff(tmp_path / "a.tif", packed, 2, 2, value)
        expected = values.reshape(2, 2) / 4095
    else:
        values = (RAMP * 4095 / 255).round().astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={tag: value})
        expected = values / 4095
    images, _ = load_images(str(tmp_path), 1, (1, *expected.shape))
    torch.testing.assert_close(images[0, 0], torch.from_numpy(expected).float())


def write_tiff(path: Path, content: bytes, width: int, height: int, bits: int) -> None:
    """A grey TIFF of one strip, which Pillow does not write with 12 bits."""
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    entries.append((279, len(content)))
    start = 8 + len(content)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    header = struct.pack("<2sHI", b"II", 42, start)
    path.write_bytes(header + content + struct.pack("<H", len(entries)) + directory + struct.pack("<I", 0))


def test_twelve_bits_in_a_colour_png_of_sixteen(tmp_path: Path) -> None:
    for name, factor in (("dark", 16), ("full", 257)):
        (tmp_path / name).mkdir()
        colours = np.repeat((RAMP * factor).astype(">u2")[..., None], 3, axis=2)
        write_colour_png(tmp_path / name / "a.png", colours)
    with pytest.raises(ImageError, match=r"a\.png' holds 16-bit numbers of at most 4095 of 65535"):
        load_images(str(tmp_path / "dark"), 1, 8)
    assert float(load_images(str(tmp_path / "full"), 1, 8)[0].mean()) == pytest.approx(0.5, abs=0.01)


def write_colour_png(path: Path, pixels: np.ndarray) -> None:
    """A PNG of 16 bits per colour, which Pillow reads and does not write."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)))
    content = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (*chunks, (b"IEND", b""))
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_deep_pnm_files_tell_their_range(tmp_path: Path) -> None:
    values = np.arange(16, dtype=">u2") * 273
    (tmp_path / "a.pgm").write_bytes(b"P5\n4 4\n4095\n" + values.astype(">u2").tobytes())
    (tmp_path / "b.ppm").write_bytes(b"P6\n4 4\n4095\n" + np.repeat(values, 3).astype(">u2").tobytes())
    images, _ = load_images(str(tmp_path), 2, 4)
    expected = torch.arange(16).view(4, 4) / 15
    torch.testing.assert_close(images[0, 0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(images[1, 0], expected, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("ending", ["jfif", "jpe", "gif", "ppm", "pgm", "pnm", "dib", "JPEG", "apng"])
def test_an_image_keeps_its_place_whatever_its_type(tmp_path: Path, ending: str) -> None:
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "jpeg": "JPEG", "gif": "GIF", "dib": "DIB", "apng": "PNG"}
    for name in ("a.png", "c.png"):
        save(tmp_path / name, gradient_picture(16, 16))
    dark = Image.fromarray(np.full((16, 16), 20, np.uint8))
    dark.save(tmp_path / f"b.{ending}", format=kinds.get(ending.lower(), "PPM"))
    images, names = load_images(str(tmp_path), 2, 8)
    assert names == ("a", "b")
    assert float(images[1].mean()) == pytest.approx(20 / 255, abs=0.01)


@pytest.mark.parametrize("name", ["b.heic", "b.avif", "b.svg", "b.jp2", "b.CR2", "b.tga", "b.eps", "b.dcm"])
def test_a_type_that_is_not_read_is_refused_and_never_passed_over(tmp_path: Path, name: str) -> None:
    save(tmp_path / "a.png", gradient_picture())
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(ImageError, match=rf"look like images and whose type is not read \({name}\); convert"):
        load_images(str(tmp_path), 1, 8)
    with pytest.raises(ImageError, match="not read"):
        count_images(str(tmp_path))


def test_an_image_without_an_ending_is_noticed_and_notes_are_not(tmp_path: Path) -> None:
    save(tmp_path / "a.png", gradient_picture())
    for name in ("labels.csv", "notes", "Thumbs.db"):
        (tmp_path / name).write_text("class,name")
    assert count_images(str(tmp_path)) == 1
    (tmp_path / "a.png").rename(tmp_path / "0001")
    with pytest.raises(ImageError, match=r"not read \(0001\)"):
        count_images(str(tmp_path))


def test_a_file_is_read_by_what_it_is_and_never_by_a_program(tmp_path: Path) -> None:
    Image.fromarray(gradient_picture(8, 8)).save(tmp_path / "a.png", format="BMP")
    assert load_images(str(tmp_path), 1, 8)[0].shape == (1, 3, 8, 8)
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match=r"a\.png' cannot be read"):
        load_images(str(tmp_path), 1, 8)


@pytest.mark.parametrize("ending", ["gif", "png", "tif", "webp"])
def test_a_file_of_several_images_is_refused(tmp_path: Path, ending: str) -> None:
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=rf"a\.{ending}' holds 2 images; give each one a file of its own"):
        load_images(str(tmp_path), 1, 8)

"""Images out of the box and from folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import ImageError, load_images
from PIL import Image


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    Image.fromarray(pixels).save(path, **options)


def gradient_picture(height: int = 12, width: int = 20) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 10, columns * 10, 255 - columns], axis=-1).astype(np.uint8)


def test_photos_are_there_distinct_and_in_range() -> None:
    images, names = load_images("photos", 24, 32)
    assert images.shape == (24, 3, 32, 32)
    assert len(set(names)) == 24
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    distance = torch.cdist(images.flatten(1), images.flatten(1)) + 1e3 * torch.eye(24)
    # Root mean square difference of at least 5 % of the range between any two.
    assert float(distance.min()) / (3 * 32 * 32) ** 0.5 > 0.05
    # None is flat; the darkest, a deep-field photo, has 0.043.
    assert float(images.std(dim=(1, 2, 3)).min()) > 0.03


def test_photos_are_the_centre_squares_of_scikit_images() -> None:
    from skimage import data

    images, names = load_images("photos", 2, 64)
    assert names == ("astronaut", "chelsea")
    whole = torch.from_numpy(np.ascontiguousarray(data.chelsea())).permute(2, 0, 1).float()[None] / 255
    square = whole[..., :, 75:375]
    expected = F.interpolate(square, size=(64, 64), mode="bilinear", antialias=True, align_corners=False)
    assert torch.equal(images[1:2], expected)


def test_more_photos_than_there_are_is_an_error() -> None:
    with pytest.raises(ImageError, match="are 24 and the batch needs 25"):
        load_images("photos", 25, 32)


def test_folder_is_read_in_order_of_name(tmp_path: Path) -> None:
    picture = gradient_picture()
    save(tmp_path / "b.png", picture)
    save(tmp_path / "a.BMP", picture[:, ::-1])
    save(tmp_path / "c.tif", picture[:, :, 0])
    save(tmp_path / ".hidden.png", picture)
    (tmp_path / "notes.txt").write_text("no image")
    images, names = load_images(str(tmp_path), 3, 12)
    assert names == ("a", "b", "c")
    square = torch.from_numpy(picture[:, 4:16].copy()).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(images[1], square)
    torch.testing.assert_close(images[2], square[:1].expand(3, -1, -1))
    torch.testing.assert_close(images[0], square.flip(-1).contiguous(), rtol=0, atol=1)
    assert load_images(str(tmp_path), 1, 12)[1] == ("a",)


def test_equal_stems_keep_their_endings(tmp_path: Path) -> None:
    for ending in ("png", "bmp"):
        save(tmp_path / f"a.{ending}", gradient_picture())
    assert load_images(str(tmp_path), 2, 8)[1] == ("a.bmp", "a.png")


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    picture = gradient_picture(12, 12)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate a quarter turn clockwise to view
    save(tmp_path / "a.png", picture, exif=exif)
    images, _ = load_images(str(tmp_path), 1, 12)
    expected = torch.from_numpy(np.rot90(picture, -1).copy()).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(images[0], expected)


def test_sixteen_bit_and_transparent_images(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    clear = np.dstack([gradient_picture(8, 8), np.full((8, 8), 7, np.uint8)])
    save(tmp_path / "b.png", clear)
    images, _ = load_images(str(tmp_path), 2, 8)
    torch.testing.assert_close(images[0, 0], torch.from_numpy(deep / 65535).float(), rtol=0, atol=1 / 255)
    torch.testing.assert_close(images[1], torch.from_numpy(clear[..., :3].copy()).permute(2, 0, 1) / 255)


def test_folder_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        load_images(str(tmp_path / "absent"), 1, 8)
    with pytest.raises(ImageError, match="holds no image"):
        load_images(str(tmp_path), 1, 8)
    save(tmp_path / "a.png", gradient_picture())
    with pytest.raises(ImageError, match="holds 1 images and the batch needs 2"):
        load_images(str(tmp_path), 2, 8)
    with pytest.raises(ImageError, match="is a file"):
        load_images(str(tmp_path / "a.png"), 1, 8)
    with pytest.raises(ImageError, match="at least 1"):
        load_images("photos", 0, 8)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_unreadable_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"broken\.png"):
        load_images(str(tmp_path), 1, 8)


def test_cut_off_image_is_named(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    save(tmp_path / "cut.png", generator.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"cut\.png"):
        load_images(str(tmp_path), 1, 8)


@pytest.mark.parametrize("limit", [100, 150])
def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    save(tmp_path / "bomb.png", gradient_picture(12, 20))
    # Pillow warns above its limit and raises above twice of it; both must stop the load.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match=r"bomb\.png.*too large"):
        load_images(str(tmp_path), 1, 8)

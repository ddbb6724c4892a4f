"""Images out of the box and from folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import ClientConfig, ClientError, ImageError, count_images, load_batch, load_images
from gradinversion.capture.client.images import class_labels
from PIL import Image


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
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
    torch.testing.assert_close(images[0, 0], torch.from_numpy(deep / 65535).float(), rtol=0, atol=1e-6)
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


def test_an_image_that_pillow_refuses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "bomb.png", gradient_picture(12, 20))
    # Pillow raises above twice its limit.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"bomb\.png.*too large"):
        load_images(str(tmp_path), 1, 8)


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 6, 12), (3, 12, 6), (1, 8, 14)])
def test_images_of_other_shapes_are_the_largest_centred_part(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    picture = gradient_picture(12, 20)
    save(tmp_path / "a.png", picture)
    images, _ = load_images(str(tmp_path), 1, shape)
    channels, height, width = shape
    rows, columns = min(12, 20 * height // width), min(20, 12 * width // height)
    top, left = (12 - rows) // 2, (20 - columns) // 2
    part = picture[top : top + rows, left : left + columns]
    whole = np.asarray(Image.fromarray(part).convert("L"))[..., None] if channels == 1 else part
    expected = torch.from_numpy(whole.copy()).permute(2, 0, 1).float()[None] / 255
    expected = F.interpolate(expected, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(images, expected)


@pytest.mark.parametrize(("shape", "mode"), [((1, 8, 12), "L"), ((3, 8, 12), "RGB"), ((4, 8, 12), "RGBA")])
def test_an_image_of_the_wanted_size_keeps_its_pixels_to_the_bit(
    tmp_path: Path, shape: tuple[int, int, int], mode: str
) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (8, 12, shape[0]), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode=None).convert(mode).save(tmp_path / "a.png")
    images, _ = load_images(str(tmp_path), 1, shape)
    assert torch.equal(images[0], torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)


def test_white_stays_in_range_at_any_size(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((97, 131, 3), 255, np.uint8))
    for side in (5, 32, 200):
        assert float(load_images(str(tmp_path), 1, side)[0].max()) <= 1


def test_channels_that_a_file_does_not_have(tmp_path: Path) -> None:
    save(tmp_path / "a.png", gradient_picture())
    with pytest.raises(ImageError, match=r"a\.png' is of mode RGB, and 4 channels are wanted"):
        load_images(str(tmp_path), 1, (4, 8, 8))
    with pytest.raises(ImageError, match="images of 5 channels cannot be read from files"):
        load_images(str(tmp_path), 1, (5, 8, 8))
    with pytest.raises(ImageError, match="'astronaut' is of mode RGB"):
        load_images("photos", 1, (4, 8, 8))
    save(tmp_path / "a.png", np.full((8, 8), 40_000, np.uint16))
    with pytest.raises(ImageError, match="is grey, and 4 channels are wanted"):
        load_images(str(tmp_path), 1, (4, 8, 8))


def class_folders(folder: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            save(folder / name / f"{index}.png", np.full((8, 8), 10 * (len(name) + index), np.uint8))
    return folder


def test_class_folders_are_read_in_order_with_their_labels(tmp_path: Path) -> None:
    folder = str(class_folders(tmp_path / "data", {"dog": 2, "cat": 1, "horse": 2}))
    assert count_images(folder) == 5
    images, names = load_images(folder, 4, 8)
    assert names == ("cat/0", "dog/0", "dog/1", "horse/0")
    assert [round(255 * float(image.mean())) for image in images] == [30, 30, 40, 50]
    assert class_labels(folder, 4) == (0, 1, 1, 2)
    assert class_labels("photos", 2) is None
    assert class_labels(f"{folder}/dog", 2) is None


def test_folders_whose_classes_are_not_clear_are_refused(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "data", {"dog": 2, "cat": 1})
    (folder / "empty").mkdir()
    with pytest.raises(ImageError, match=r"others without \(empty\).*remove those without"):
        count_images(str(folder))
    (folder / "empty").rename(folder / ".empty")
    assert count_images(str(folder)) == 3
    save(folder / "a.png", gradient_picture())
    with pytest.raises(ImageError, match=r"holds images beside folders of images \(cat, dog\)"):
        count_images(str(folder))


@pytest.mark.parametrize(
    ("settings", "labels"),
    [({}, [0, 1, 1, 2]), ({"labels": "3,3,3,0"}, [3, 3, 3, 0]), ({"labels": "unique"}, [0, 1, 2, 3])],
)
def test_a_client_of_class_folders(tmp_path: Path, settings: dict[str, Any], labels: list[int]) -> None:
    folder = class_folders(tmp_path / "data", {"dog": 2, "cat": 1, "horse": 2})
    batch = load_batch(ClientConfig(images=str(folder), image_size=8, **settings))
    assert batch.labels.tolist() == labels
    assert batch.labels.dtype is torch.int64


def test_more_class_folders_than_classes(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "data", {"dog": 2, "cat": 1, "horse": 2})
    with pytest.raises(ClientError, match="go up to class 2, but with 2 classes the labels are 0 to 1"):
        load_batch(ClientConfig(images=str(folder), image_size=8, classes=2, batch_size=5))

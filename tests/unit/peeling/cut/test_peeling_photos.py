from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gradinversion.capture import ImageError
from gradinversion.peeling.cut import decoder_photos, photo_crops, public_photos
from gradinversion.peeling.cut.photos import SHIPPED
from PIL import Image


def folder_of(path: Path, *sizes: tuple[int, int]) -> Path:
    path.mkdir()
    random = np.random.default_rng(0)
    for index, (height, width) in enumerate(sizes):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{index:03}.png")
    return path


def test_four_photos_come_with_scikit_image_and_others_stand_in_for_those_left_out() -> None:
    assert tuple(public_photos()) == SHIPPED[:4]
    assert tuple(public_photos(SHIPPED[:4])) == SHIPPED[4:]
    assert tuple(public_photos(SHIPPED[1:3])) == ("astronaut", "rocket", "motorcycle", "camera")
    assert all(picture.shape[0] == 3 for picture in public_photos(SHIPPED[:4]).values())


def test_pictures_of_a_folder_keep_their_pixels_unless_they_are_large(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "public", (40, 60), (1200, 400), (8, 8))
    photos = decoder_photos(str(folder), (), (3, 32, 32))
    assert list(photos) == ["000", "001", "002"]
    assert photos["000"].shape == (3, 40, 60)
    with Image.open(folder / "000.png") as image:
        assert torch.equal((255 * photos["000"]).round().permute(1, 2, 0).byte(), torch.from_numpy(np.array(image)))
    height, width = photos["001"].shape[1:]
    assert height == pytest.approx(3 * width, rel=0.02)
    assert height * width == pytest.approx(256**2, rel=0.02)
    # Smaller than the images: crops are made larger.
    assert photo_crops(list(photos.values()), (32, 32), 5).shape == (5, 3, 32, 32)


def test_of_a_large_folder_some_are_taken_and_none_for_one_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "public", *[(4, 4)] * 130)
    photos = decoder_photos(str(folder), (), (3, 8, 8))
    assert len(photos) == 64
    assert next(iter(photos)) == "000"
    assert list(photos)[-1] > "125"
    assert list(decoder_photos(str(folder), list(photos)[:10], (3, 8, 8))) == list(photos)[10:]


def test_grey_images_are_decoded_with_grey_photos() -> None:
    photos = decoder_photos("photos", (), (1, 28, 28))
    assert [picture.shape[0] for picture in photos.values()] == [1] * 4
    assert photo_crops(list(photos.values()), (28, 28), 3).shape == (3, 1, 28, 28)


def test_photos_in_grey_are_given_colours_for_images_in_colour() -> None:
    crops = photo_crops([public_photos(SHIPPED[:5])["camera"]], (16, 16), 8)
    assert bool((crops[:, 0] != crops[:, 1]).flatten(1).any(dim=1).all())


@pytest.mark.parametrize(
    ("source", "shape", "words"),
    [
        ("nowhere", (3, 8, 8), "does not exist"),
        ("public", (3, 8, 8), "has 1 photos that are not left out"),
        ("photos", (4, 8, 8), "1 or 3 channels"),
    ],
)
def test_photos_that_cannot_be_had_are_a_sentence(
    tmp_path: Path, source: str, shape: tuple[int, int, int], words: str
) -> None:
    folder_of(tmp_path / "public", (8, 8), (8, 8))
    given = source if source == "photos" else str(tmp_path / source)
    with pytest.raises(ImageError, match=words):
        decoder_photos(given, ("001",), shape)

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gradinversion.audit.decoder_photos import without_private
from gradinversion.capture import ImageError, PrivateBatch, load_images
from gradinversion.peeling import PeelingConfig
from gradinversion.peeling.cut.photos import SHIPPED, public_photos
from PIL import Image


def private_of(source: str, count: int, size: int = 32) -> PrivateBatch:
    images, names = load_images(source, count, size)
    return PrivateBatch(images, torch.arange(count), names)


def written(folder: Path, *names: str, quality: int = 90) -> Path:
    folder.mkdir()
    photos = public_photos([name for name in SHIPPED if name not in names])
    for name in names:
        pixels = (255 * photos[name]).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"the {name}.jpg", quality=quality)
    return folder


def test_the_simulated_client_keeps_its_own_photos_and_those_that_they_are_parts_of() -> None:
    found = without_private(PeelingConfig(photos_without=("brick",)), private_of("photos", 4), "photos")
    assert found.photos_without == ("brick", "astronaut", "chelsea", "coffee", "rocket")
    assert found.photos == "photos"
    parts = private_of("photos", 24)
    part = PrivateBatch(parts.images[6:8], parts.labels[:2], parts.names[6:8])
    assert parts.names[6:8] == ("astronaut_suit", "motorcycle_wheel")
    assert without_private(PeelingConfig(), part, "photos").photos_without == ("astronaut", "motorcycle")


def test_copies_of_public_photos_are_recognised(tmp_path: Path) -> None:
    folder = written(tmp_path / "private", "coffee", "camera", quality=60)
    for source in (str(folder), None):
        found = without_private(PeelingConfig(), private_of(str(folder), 2), source)
        assert found.photos_without == ("coffee", "camera")


def test_private_images_in_the_folder_of_public_ones_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = written(tmp_path / "public", "astronaut", "coffee", "rocket")
    private = private_of(str(written(tmp_path / "private", "coffee", quality=60)), 1)
    monkeypatch.chdir(tmp_path)
    found = without_private(PeelingConfig(photos="public"), private, str(tmp_path / "private"))
    assert found.photos_without == ("the coffee",)
    assert found.photos == str(public.resolve())


def test_too_few_are_refused_before_the_attack(tmp_path: Path) -> None:
    public = written(tmp_path / "public", "astronaut", "coffee")
    with pytest.raises(ImageError, match="has 1 photos that are not left out"):
        without_private(PeelingConfig(photos=str(public)), private_of("photos", 1), "photos")
    with pytest.raises(ImageError, match="does not exist"):
        without_private(PeelingConfig(photos=str(tmp_path / "none")), None, None)


def test_nothing_is_looked_at_where_nothing_is_decoded(tmp_path: Path) -> None:
    for given in (PeelingConfig(taps=False, photos="nowhere"), PeelingConfig(enabled=False, photos="nowhere")):
        assert without_private(given, private_of("photos", 1), "photos") == given
    odd = PrivateBatch(torch.rand(1, 4, 8, 8), torch.zeros(1).long(), ("one",))
    assert without_private(PeelingConfig(), odd, "photos") == PeelingConfig()
    assert without_private(PeelingConfig(), None, None) == PeelingConfig()

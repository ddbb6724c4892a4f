"""Folders of strangers: links, pipes and devices in the place of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gradinversion.storage.folders import Storage, StorageError


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("secret")
    return Storage(tmp_path / "run")


def make(storage: Storage, kind: str) -> None:
    path = storage.path / "checkpoints" / "file"
    elsewhere = storage.path.parent / "elsewhere" / "secret"
    makers = {
        "pipe": lambda: os.mkfifo(path),
        "zero": lambda: path.symlink_to("/dev/zero"),
        "link": lambda: path.symlink_to(elsewhere),
        "relative link": lambda: path.symlink_to("../../elsewhere/secret"),
        "link to itself": lambda: path.symlink_to("file"),
    }
    makers[kind]()


@pytest.mark.parametrize("kind", ["pipe", "zero", "link", "relative link", "link to itself"])
def test_what_is_no_file_of_the_folder_is_not_opened(storage: Storage, kind: str) -> None:
    make(storage, kind)
    for operation in (storage.size, storage.digest, lambda name: storage.read(name, 100)):
        with pytest.raises(StorageError, match=r"it is a link, and those are not followed|it is no regular file"):
            operation("checkpoints/file")
    storage.remove("checkpoints/file")
    assert storage.names("checkpoints") == []
    assert (storage.path.parent / "elsewhere" / "secret").read_text() == "secret"


def test_a_folder_that_is_a_link_is_not_entered(storage: Storage) -> None:
    (storage.path / "away").symlink_to("../elsewhere")
    for operation in (
        lambda: storage.read("away/secret", 100),
        lambda: storage.names("away"),
        lambda: storage.digest("away/secret"),
        lambda: storage.write("away/secret", b"mine"),
        lambda: storage.remove("away/secret"),
    ):
        with pytest.raises(StorageError, match="it is a link, and those are not followed"):
            operation()
    assert (storage.path.parent / "elsewhere" / "secret").read_text() == "secret"


def test_a_link_in_the_place_of_a_file_is_replaced_and_what_it_shows_stays(storage: Storage) -> None:
    make(storage, "link")
    storage.write("checkpoints/file", b"mine")
    assert storage.read("checkpoints/file", 100) == b"mine"
    assert (storage.path.parent / "elsewhere" / "secret").read_text() == "secret"


def test_the_folder_itself_may_be_a_link(storage: Storage, tmp_path: Path) -> None:
    storage.write("checkpoints/file", b"mine")
    (tmp_path / "link").symlink_to("run")
    linked = Storage(tmp_path / "link")
    assert linked.read("checkpoints/file", 100) == b"mine"
    assert linked.names() == ["checkpoints"]
    assert linked.size("checkpoints/file") == 4
    assert linked.exists("checkpoints")
    linked.write("new/file", b"")
    assert storage.names() == ["checkpoints", "new"]

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from gradinversion.storage.atomic import PARTIAL, place_files


def test_files_are_put_in_their_places(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    seen: list[str] = []

    def save(path: Path) -> None:
        seen.append((tmp_path / "a").read_text())
        assert PARTIAL.fullmatch(path.name)
        path.write_text("new")

    place_files({tmp_path / "a": save, tmp_path / "b": save})
    assert seen == ["old", "old"]  # the second is complete before the first is replaced
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}


def test_a_file_that_fails_leaves_all_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place_files({tmp_path / "a": lambda path: path.write_text("new"), tmp_path / "b": fail})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_files_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    def private(path: Path) -> None:
        path.unlink()
        path.touch(0o600)

    before = os.umask(0o022)
    try:
        place_files({tmp_path / "a": private})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("code", "refused"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_flushed_by_its_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, refused: bool
) -> None:
    flush = os.fsync

    def of_files(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", of_files)
    saves = {tmp_path / "a": lambda path: path.write_text("new")}
    if refused:
        with pytest.raises(OSError, match=os.strerror(code)):
            place_files(saves)
    else:
        place_files(saves)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]

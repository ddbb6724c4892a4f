"""A file in a storage is there whole or not at all, on a disk and in a bucket, and every failure is a sentence."""

from __future__ import annotations

import errno
import hashlib
import importlib
import itertools
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gradinversion.storage.folders import AbsentError, PassingError, Storage, StorageError

_NAMES = itertools.count()


@pytest.fixture(params=["disk", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(tmp_path / "out" if request.param == "disk" else f"memory://storage-{next(_NAMES)}/out")


def test_what_is_written_is_read(storage: Storage) -> None:
    digest = storage.write("a/b/file.bin", b"content")
    assert digest == hashlib.sha256(b"content").hexdigest() == storage.digest("a/b/file.bin")
    assert storage.read("a/b/file.bin", 7) == b"content"
    assert storage.size("a/b/file.bin") == 7
    storage.write("a/b/file.bin", b"new")
    assert storage.read("a/b/file.bin", 7) == b"new"


def test_an_empty_file_is_a_file(storage: Storage) -> None:
    assert storage.write("empty", b"") == storage.digest("empty") == hashlib.sha256().hexdigest()
    assert storage.read("empty", 0) == b""
    assert storage.exists("empty")


def test_names_are_those_of_one_level(storage: Storage) -> None:
    for name in ("top", "folder/two", "folder/one", "folder/deep/three"):
        storage.write(name, b"x")
    assert storage.names() == ["folder", "top"]
    assert storage.names("folder") == ["deep", "one", "two"]
    assert storage.names("nothing") == []


def test_a_new_listing_shows_what_another_process_wrote(storage: Storage) -> None:
    storage.write("folder/one", b"x")
    assert storage.names("folder") == ["one"]
    Storage(storage.url).write("folder/two", b"x")
    assert storage.names("folder") == ["one", "two"]
    assert storage.exists("folder/two")


def test_a_file_or_a_folder_is_removed_and_absence_is_no_error(storage: Storage) -> None:
    for name in ("keep", "file", "folder/one", "folder/deep/two"):
        storage.write(name, b"x")
    for name in ("file", "folder", "nothing"):
        storage.remove(name)
    assert storage.names() == ["keep"]
    assert not storage.exists("folder/deep/two")


def test_the_whole_storage_is_not_removed(storage: Storage) -> None:
    storage.write("keep", b"x")
    with pytest.raises(StorageError, match="is not the name of a file"):
        storage.remove("")
    assert storage.names() == ["keep"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "a/../../outside", "a//b", "./a", "a/", ""])
def test_a_name_that_leads_outside_is_refused(storage: Storage, name: str) -> None:
    for operation in (lambda: storage.write(name, b"x"), lambda: storage.read(name, 9), lambda: storage.remove(name)):
        with pytest.raises(StorageError, match="is not the name of a file"):
            operation()


def test_a_file_that_is_too_large_is_not_read(storage: Storage) -> None:
    storage.write("file", b"12345")
    assert storage.read("file", 5) == b"12345"
    with pytest.raises(StorageError, match=r"out/file has 5 bytes; at most 4 are read"):
        storage.read("file", 4)


def test_a_missing_file_is_named(storage: Storage) -> None:
    for operation in (lambda: storage.read("none", 9), lambda: storage.digest("none"), lambda: storage.size("none")):
        with pytest.raises(AbsentError, match=r"out/none cannot be read: .+\.$"):
            operation()
    assert not storage.exists("none")


def test_a_folder_is_not_read_as_a_file(storage: Storage) -> None:
    storage.write("folder/file", b"x")
    assert storage.exists("folder")
    with pytest.raises(StorageError, match="out/folder cannot be read: it is a folder"):
        storage.read("folder", 9)


def test_it_travels_to_another_process(storage: Storage) -> None:
    storage.patience = 3.0
    storage.write("file", b"x")
    copy = pickle.loads(pickle.dumps(storage))
    assert (copy.url, copy.is_local, copy.patience) == (storage.url, storage.is_local, 3.0)
    assert copy.read("file", 1) == b"x"
    assert all(
        value is None or isinstance(value, str | float | bool | set) for value in storage.__getstate__().values()
    )


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("some/../out")
    assert storage.url == str(tmp_path / "out")
    assert storage.path == tmp_path / "out"
    assert storage.is_local
    assert Storage(f"file://{tmp_path}/out/").path == storage.path


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/folder", r"'ftp' is not supported; give a folder, file:///PATH, s3://BUCKET/FOLDER or gs://"),
        ("simplecache::s3://bucket/folder", "is not supported"),
        ("s3://", "does not name a bucket"),
        ("s3:///folder", "does not name a bucket"),
        ("s3://bucket/../other", "does not name a bucket"),
        ("file://folder/out", "three slashes"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_once(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Storage(url)


@pytest.mark.parametrize(("protocol", "package", "extra"), [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")])
def test_a_missing_package_says_what_to_install(
    protocol: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    # An earlier test may have imported it.
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, protocol, raising=False)
    with pytest.raises(StorageError, match=rf"pip install gradinversion\[{extra}\]") as error:
        Storage(f"{protocol}://bucket/out", patience=60).write("file", b"x")
    assert "\n" not in str(error.value)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failing: Callable[..., list[int]]
) -> None:
    storage = Storage(tmp_path)
    storage.write("file", b"old")
    failing(1)
    with pytest.raises(PassingError, match=r"file cannot be written: No space left on device\.$"):
        storage.write("file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert storage.read("file", 3) == b"old"


def test_what_a_killed_process_left_behind_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            storage.write("file", b"x")
    assert len(os.listdir(tmp_path)) == 1
    assert storage.names() == []


def test_who_listens_stays_in_its_process(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.listener = lambda trouble: None  # which cannot be pickled
    assert pickle.loads(pickle.dumps(storage)).listener is None


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EINVAL])
def test_failures_that_stay_are_not_tried_again(
    tmp_path: Path, failing: Callable[..., list[int]], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    calls = failing(10**6, code)
    with pytest.raises(StorageError, match="cannot be written") as error:
        Storage(tmp_path, patience=1000.0).write("file", b"x")
    assert not isinstance(error.value, PassingError)
    assert len(calls) == 1


def test_a_mistake_of_the_program_is_not_made_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Storage(tmp_path, patience=1000.0).write("file", "text")  # type: ignore[arg-type]


def test_a_file_in_the_way_of_a_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(StorageError, match=r"out/folder/file cannot be written"):
        Storage(tmp_path / "out", patience=1000.0).write("folder/file", b"x")
    with pytest.raises(StorageError, match=r"out cannot be listed: Not a directory\.$"):
        Storage(tmp_path / "out").names()

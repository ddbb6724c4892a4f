"""A storage that fails is waited for, as long as its patience says and no longer, and what fails is told."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from gradinversion.storage.folders import AbsentError, PassingError, Storage
from gradinversion.storage.local_folder import LocalFolder


def test_failures_that_pass_are_waited_for(
    tmp_path: Path, failing: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path, patience=1000.0)
    waits: list[float] = []
    told: list[str | None] = []
    storage.listener = told.append
    monkeypatch.setattr("gradinversion.storage.folders._TELL_SECONDS", 0.0)
    monkeypatch.setattr("time.sleep", waits.append)
    failing(4, errno.EIO)
    storage.write("file", b"x")
    assert storage.read("file", 1) == b"x"
    assert len(waits) == 4
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, (0.1, 0.2, 0.4, 0.8), strict=True))
    trouble, end = told
    assert trouble is not None
    assert trouble.endswith("file cannot be written: Input/output error.")
    assert end is None


def test_patience_ends(tmp_path: Path, failing: Callable[..., list[int]], clock: list[float]) -> None:
    calls = failing(10**6)
    with pytest.raises(PassingError, match="No space left"):
        Storage(tmp_path, patience=60.0).write("file", b"x")
    assert clock[0] == pytest.approx(60.0)
    assert 8 < len(calls) < 20


def test_a_storage_that_is_gone_is_waited_for_once_and_not_for_each_file(
    tmp_path: Path, failing: Callable[..., list[int]], clock: list[float]
) -> None:
    storage = Storage(tmp_path, patience=60.0)
    calls = failing(10**6)
    with pytest.raises(PassingError):
        storage.write("first", b"x")
    tried = len(calls)
    for name in ("second", "third"):
        with pytest.raises(PassingError, match=f"{name} cannot be written: No space left"):
            storage.write(name, b"x")
    assert clock[0] == pytest.approx(60.0)
    assert len(calls) - tried == 2


def test_a_full_disk_from_which_is_read_takes_no_files_all_the_same(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path, patience=60.0)
    storage.write("kept", b"x")
    told: list[str | None] = []
    storage.listener = told.append

    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        for _ in range(2):
            with pytest.raises(PassingError):
                storage.write("file", b"x")
            assert clock[0] == pytest.approx(60.0)
            assert (storage.read("kept", 9), storage.exists("absent")) == (b"x", False)
            storage.remove("absent")
        assert len(told) == 1
    storage.write("file", b"x")
    assert told[1:] == [None]
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(PassingError):
        storage.write("file", b"y")
    assert clock[0] == pytest.approx(120.0)


@pytest.fixture
def too_small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A disk on which files of over ten bytes have no room while this list holds a word."""
    written, real = ["full"], LocalFolder.write

    def write(folder: LocalFolder, name: str, content: bytes) -> None:
        if written and len(content) > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(folder, name, content)

    monkeypatch.setattr(LocalFolder, "write", write)
    return written


def test_that_others_succeed_prolongs_no_operation_s_patience_and_hides_no_trouble(
    tmp_path: Path, clock: list[float], too_small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path, patience=60.0)
    told: list[str | None] = []
    storage.listener = told.append
    small: list[str] = []

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        other = threading.Thread(target=lambda: small.append(storage.write("small", b"x")))
        other.start()
        other.join()

    monkeypatch.setattr("time.sleep", sleep)
    with pytest.raises(PassingError, match="large cannot be written: No space left"):
        storage.write("large", bytes(20))
    assert clock[0] == pytest.approx(60.0)
    assert len(small) > 5
    (trouble,) = told
    assert trouble is not None
    assert "large cannot be written" in trouble
    storage.write("small", b"x")
    assert told == [trouble, None]


def test_who_fails_after_the_trouble_of_another_has_ended_has_its_patience(
    tmp_path: Path, clock: list[float], too_small: list[str]
) -> None:
    storage = Storage(tmp_path, patience=60.0)
    with pytest.raises(PassingError):
        storage.write("large", bytes(20))
    clock[0] += 10.0
    with pytest.raises(PassingError):
        storage.write("soon", bytes(20))
    assert clock[0] == pytest.approx(70.0)
    clock[0] += 3600.0
    with pytest.raises(PassingError):
        storage.write("later", bytes(20))
    assert clock[0] == pytest.approx(3730.0)


def test_operations_that_take_longer_than_the_patience_do_not_each_have_it(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: object) -> None:
        clock[0] += 100.0
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    monkeypatch.setattr(LocalFolder, "write", hang)
    storage = Storage(tmp_path, patience=60.0)
    with pytest.raises(PassingError):
        storage.write("first", b"x")
    tried_twice = clock[0]
    assert tried_twice > 200.0  # counted from its first failure
    with pytest.raises(PassingError):
        storage.write("second", b"x")
    assert clock[0] == pytest.approx(tried_twice + 100.0)


def test_that_a_bucket_is_gone_is_no_sign_that_files_are_written_again(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path, patience=60.0)
    told: list[str | None] = []
    storage.listener = told.append
    # As s3fs has it: a server that is away, then one without its bucket.
    errors = [*[OSError(errno.EIO, os.strerror(errno.EIO))] * 8, FileNotFoundError("The specified bucket is gone")]

    def fail(*_: object) -> None:
        raise errors.pop(0)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "write", fail)
        with pytest.raises(AbsentError, match="file cannot be written: The specified bucket is gone"):
            storage.write("file", b"x")
    assert len(told) == 1
    storage.write("file", b"x")
    assert told[1:] == [None]


@pytest.mark.parametrize("answer", [lambda s: s.read("kept", 9), lambda s: s.exists("absent"), lambda s: s.names()])
def test_where_reading_failed_whatever_it_answers_begins_its_patience_anew(
    answer: Callable[[Storage], object], tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path, patience=60.0)
    storage.write("kept", b"x")

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for seconds in (60.0, 120.0):
        with monkeypatch.context() as patch:
            patch.setattr("gradinversion.storage.local_folder.LocalFolder.read", fail)
            with pytest.raises(PassingError):
                storage._attempt("read", "kept", lambda files: files.read("kept", 1))
        assert clock[0] == pytest.approx(seconds)
        answer(storage)


def test_trouble_that_lasts_is_told_once_and_its_end_too(
    tmp_path: Path, failing: Callable[..., list[int]], clock: list[float]
) -> None:
    storage = Storage(tmp_path, patience=1000.0)
    told: list[tuple[float, str | None]] = []
    storage.listener = lambda trouble: told.append((clock[0], trouble))
    failing(3)
    storage.write("short", b"x")
    assert told == []  # less than a second
    failing(9)
    storage.write("long", b"x")
    (when, trouble), (_, end) = told
    assert 5.0 <= when < 20.0
    assert trouble is not None
    assert trouble.endswith("long cannot be written: No space left on device.")
    assert end is None

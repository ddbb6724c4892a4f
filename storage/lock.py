"""One run at a time in a folder of this machine."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from .folders import Storage, StorageError

_held: set[str] = set()
"""Folders that this process holds: what a command has begun, its own parts may use."""


class InUseError(StorageError):
    """Another process on this machine runs in the folder."""


@contextlib.contextmanager
def holding(storage: Storage | None) -> Iterator[None]:
    """Hold a folder while a run uses it. The lock ends with the process, however that ends.

    A folder that does not exist is made, and removed again where nothing was put into it. Buckets are not held.

    Raises:
        InUseError: Another process holds it.
        StorageError: The folder cannot be made.
    """
    if storage is None or not storage.is_local or storage.url in _held:
        yield
        return
    made = not storage.path.exists()
    descriptor = _open(storage)
    try:
        _lock(descriptor, storage)
        _held.add(storage.url)
        try:
            yield
        finally:
            _held.discard(storage.url)
    finally:
        if made:
            with contextlib.suppress(OSError):
                storage.path.rmdir()
        os.close(descriptor)


def require_free(storage: Storage) -> None:
    """Refuse a folder in which another process runs; no other trouble with it is told, and nothing is made.

    Raises:
        InUseError: Another process holds it.
    """
    if not storage.is_local or not storage.path.is_dir():
        return
    try:
        with holding(storage):
            return
    except InUseError:
        raise
    except StorageError:
        return  # what is done with it next tells that


def _open(storage: Storage) -> int:
    try:
        storage.path.mkdir(parents=True, exist_ok=True)
        return os.open(storage.path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StorageError(
            f"{storage.url} cannot be used for a run ({error.strerror}); give another folder with out=FOLDER."
        ) from error


def _lock(descriptor: int, storage: Storage) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems know no locks; runs there are told apart by their checkpoints' owner alone.
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise InUseError(
                f"Another run is under way in {storage.url} on this machine; wait for its end, or give another folder "
                "with out=FOLDER."
            ) from None

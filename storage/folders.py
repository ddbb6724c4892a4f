"""A folder given as a path or a URL: files are written whole or not at all, and read with a limit."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from ..refusal import Refusal
from .atomic import PARTIAL
from .local_folder import LocalFolder

_Result = TypeVar("_Result")

# Those whose writes are atomic.
_PROTOCOLS = ("s3", "gs", "gcs", "memory")
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.1, 15.0
# Shorter troubles are nobody's concern.
_TELL_SECONDS = 5.0
# Of its own: the attack's random numbers must not depend on the storage's state.
_CHANCE = random.SystemRandom()
_CHUNK_BYTES = 8 * 2**20
# A bucket's error may quote a whole page.
_LONGEST_REASON = 300
# What stays wrong however often it is tried again.
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_LASTING_CODES = {"EINVAL", "ENAMETOOLONG", "EROFS", "ELOOP", "ENOSYS", "EREMCHG"}
# Errors of botocore, aiohttp and google-auth that are no OSError; none of these packages need be installed here.
_PASSING_KINDS = {"ConnectionError", "HTTPClientError", "CredentialRetrievalError"}
_PASSING_KINDS |= {"ClientConnectionError", "ClientPayloadError", "TransportError"}
_CREDENTIAL_ERRORS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError"}


class StorageError(Refusal, RuntimeError):
    """A storage, or a file in it, cannot be used; one sentence that names it and says why."""


class AbsentError(StorageError):
    """There is no such file."""


class PassingError(StorageError):
    """What failed may succeed later: no connection, a full disk, a server that is busy."""


class Storage:
    """A folder on a disk or in a bucket. It may be pickled and shared by threads.

    An operation that fails for a reason that may pass is tried again, after growing pauses, until ``patience`` is over.
    It counts from the first failure since anything succeeded, or was written where that fails: with a storage that is
    gone or full, what comes soon afterwards is tried once, and a run does not wait anew for each of its files. That
    other operations succeed meanwhile prolongs no operation's patience; one that begins when nothing has failed for
    ``patience`` seconds has all of it.

    Args:
        url: A path, or a URL: ``file:///path``, ``s3://bucket/folder``, ``gs://bucket/folder``; ``memory://name`` lives
            in this process.
        patience: Seconds over which a failing storage is tried again; 0 tries once.

    Raises:
        StorageError: The URL has another protocol, or names no bucket.
    """

    def __init__(self, url: str | Path, patience: float = 0.0) -> None:
        self.url, self.is_local = _resolve(str(url))
        self.patience = patience
        self.listener: Callable[[str | None], object] | None = None
        """Told once why an operation fails, when it has for some seconds, and None when one succeeded and no other
        is being tried again; from whichever thread waits. It stays in its process."""
        self._failing_since: float | None = None
        self._failed_last = 0.0
        self._takes_no_files = self._told = False
        # Threads whose operation failed and is tried again.
        self._waiting: set[int] = set()
        self._files: _Files | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Connections stay in their process.
        return self.__dict__ | {
            "_files": None,
            "listener": None,
            "_failing_since": None,
            "_takes_no_files": False,
            "_told": False,
            "_waiting": set(),
        }

    @property
    def path(self) -> Path:
        """The folder on the disk; only of a local storage."""
        assert self.is_local, f"{self.url} is not on a disk"
        return Path(self.url)

    def write(self, name: str, content: bytes) -> str:
        """Put a file in its place at once, flushed to the disk; returns its SHA-256. An older one stays until then."""
        self._attempt("written", name, lambda files: files.write(name, content))
        return hashlib.sha256(content).hexdigest()

    def write_file(self, name: str, save: Callable[[Path], object]) -> None:
        """As ``write``, into a local storage, of what ``save`` writes to the path that it is given."""

        def place(files: _Files) -> None:
            assert isinstance(files, LocalFolder), f"{self.url} is not on a disk"
            files.place(name, save)

        self._attempt("written", name, place)

    def read(self, name: str, largest: int) -> bytes:
        """The content of a file of at most ``largest`` bytes; a larger one is refused unread."""
        size = self.size(name)
        if size > largest:
            raise StorageError(f"{self.locate(name)} has {size:,} bytes; at most {largest:,} are read.")
        return self._attempt("read", name, lambda files: files.read(name, size) if size else b"")

    def digest(self, name: str) -> str:
        """The SHA-256 of a file of any size."""

        def stream(files: _Files) -> str:
            with files.open(name) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        return self._attempt("read", name, stream)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        size = self._attempt("read", name, lambda files: files.size(name))
        if size is None:
            raise StorageError(f"{self.locate(name)} cannot be read: it is a folder.")
        return size

    def exists(self, name: str) -> bool:
        """Whether there is a file or a folder of that name."""
        try:
            self._attempt("read", name, lambda files: files.size(name))
        except AbsentError:
            return False
        return True

    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of the files and folders in a folder, one level deep; none where there is no such folder."""
        try:
            found = self._attempt("listed", prefix, lambda files: files.names(prefix))
        except AbsentError:
            return []
        return sorted(name for name in found if not PARTIAL.fullmatch(name))

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it; nothing happens where there is none."""
        with contextlib.suppress(AbsentError):
            self._attempt("removed", name, lambda files: files.remove(name))

    def locate(self, name: str) -> str:
        """Path or URL of a file in it, for people."""
        return os.path.join(self.url, name) if name else self.url

    def _attempt(self, verb: str, name: str, operation: Callable[[_Files], _Result]) -> _Result:
        if (name or verb != "listed") and any(part in ("", ".", "..") for part in name.split("/")):
            raise StorageError(f"{name!r} is not the name of a file in {self.url}; give one inside it, without '..'.")
        try:
            return self._tried_again(verb, name, operation)
        finally:
            self._waiting.discard(threading.get_ident())

    def _tried_again(self, verb: str, name: str, operation: Callable[[_Files], _Result]) -> _Result:
        began, longest_wait = time.monotonic(), _FIRST_WAIT_SECONDS
        failing_since = math.inf
        while True:
            try:
                result = operation(self._open())
            except Exception as error:
                failure = _explain(f"{self.locate(name)} cannot be {verb}", error)
                if failure is None:
                    raise
                if isinstance(failure, AbsentError) and verb != "written":
                    self._works(verb)  # that is an answer; of a write, that its bucket is gone
                if not isinstance(failure, PassingError):
                    raise failure from error
                now = time.monotonic()
                # Another thread's success ends what the storage as a whole suffers from, not this operation's trouble.
                failing_since = min(failing_since, self._fails_since(verb, began, now))
                left = failing_since + self.patience - now
                if left <= 0:
                    raise failure from error
                self._waits(str(failure), now - failing_since)
                # Random, so that many agents do not return to a busy server together.
                time.sleep(min(left, _CHANCE.uniform(longest_wait / 2, longest_wait)))
                longest_wait = min(2 * longest_wait, _LONGEST_WAIT_SECONDS)
            else:
                self._works(verb)
                return result

    def _fails_since(self, verb: str, began: float, now: float) -> float:
        """When the trouble began that an operation has just met, which began at that time itself."""
        since = self._failing_since
        if since is None or began - self._failed_last > self.patience:
            since = now
        self._failing_since, self._failed_last = since, now
        self._takes_no_files |= verb == "written"
        return since

    def _waits(self, reason: str, seconds: float) -> None:
        self._waiting.add(threading.get_ident())
        if not self._told and seconds >= _TELL_SECONDS:
            self._told = True
            if self.listener is not None:
                self.listener(reason)

    def _works(self, verb: str) -> None:
        if self._takes_no_files and verb != "written":
            return  # from a full disk too can be read and removed
        self._failing_since, self._takes_no_files = None, False
        if self._told and self._waiting <= {threading.get_ident()}:
            self._told = False
            if self.listener is not None:
                self.listener(None)

    def _open(self) -> _Files:
        if self._files is None:
            self._files = LocalFolder(self.path) if self.is_local else _BucketFolder(self.url)
        return self._files


class _BucketFolder:
    """Objects under a prefix; a put is atomic there. Listings are never remembered: others write here too."""

    def __init__(self, url: str) -> None:
        # No instance of fsspec's own cache: that one is closed with the thread or process that made it.
        self._system, self._root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)

    def write(self, name: str, content: bytes) -> None:
        self._system.pipe_file(self._locate(name), content)

    def open(self, name: str) -> BufferedReader:
        file: BufferedReader = self._system.open(self._locate(name), "rb", block_size=_CHUNK_BYTES)
        return file

    def read(self, name: str, size: int) -> bytes:
        content: bytes = self._system.cat_file(self._locate(name), start=0, end=size)
        return content

    def size(self, name: str) -> int | None:
        facts = self._system.info(self._locate(name))
        return None if facts["type"] == "directory" else int(facts["size"])

    def names(self, prefix: str) -> list[str]:
        folder = self._locate(prefix)
        below = [path.rstrip("/") for path in self._system.ls(folder, detail=False)]
        return [path.removeprefix(f"{folder}/") for path in below if path.startswith(f"{folder}/")]

    def remove(self, name: str) -> None:
        self._system.rm(self._locate(name), recursive=True)

    def _locate(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


_Files = LocalFolder | _BucketFolder


def _resolve(url: str) -> tuple[str, bool]:
    """The absolute URL or path, and whether it is on a disk."""
    protocol, separator, rest = url.partition("://")
    if not separator:
        return os.path.abspath(url), True
    if protocol == "file":
        if not rest.startswith("/"):
            raise StorageError(
                f"{url} names a host, not a folder on this machine: give file:///PATH with three slashes."
            )
        return os.path.abspath(rest), True
    if protocol not in _PROTOCOLS:
        raise StorageError(
            f"{url}: the protocol {protocol!r} is not supported; give a folder, file:///PATH, s3://BUCKET/FOLDER or "
            "gs://BUCKET/FOLDER."
        )
    rest = rest.rstrip("/")
    if any(part in ("", ".", "..") for part in rest.split("/")):
        raise StorageError(f"{url} does not name a bucket and a folder in it, as {protocol}://BUCKET/FOLDER does.")
    return f"{protocol}://{rest}", False


def _explain(what: str, error: Exception) -> StorageError | None:
    """The error in one sentence; None for one that is a mistake of the program."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    reason = " ".join(reason.split())[:_LONGEST_REASON].rstrip(".")
    if isinstance(error, ImportError):
        protocol = "gcs" if "gcsfs" in str(error) else "s3"
        return StorageError(f"{what}: a package is missing ({reason}); pip install gradinversion[{protocol}].")
    if kinds & _CREDENTIAL_ERRORS:
        return StorageError(f"{what}: there are no valid credentials for it here ({reason}).")
    if isinstance(error, FileNotFoundError):
        # fsspec gives the path alone as the reason.
        return AbsentError(f"{what}: {reason if ' ' in reason else 'it does not exist'}.")
    if _may_pass(error, kinds):
        return PassingError(f"{what}: {reason}.")
    if isinstance(error, OSError | ValueError) or type(error).__module__ != "builtins":
        return StorageError(f"{what}: {reason}.")
    return None


def _may_pass(error: Exception, kinds: set[str]) -> bool:
    if isinstance(error, OSError):
        return not isinstance(error, _LASTING) and errno.errorcode.get(error.errno or 0) not in _LASTING_CODES
    code = str(getattr(error, "code", ""))  # of gcsfs
    return bool(kinds & _PASSING_KINDS) or code in ("408", "429") or re.fullmatch(r"5\d\d", code) is not None

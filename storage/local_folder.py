"""Files in a folder of a disk, and nothing but them: no links are followed out of it, no pipes or devices opened."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

from .atomic import place_files

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# Without waiting: to open a pipe would last until somebody writes.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class LocalFolder:
    """Files by name, a slash between the parts. The folder itself may be a link; what lies in it may not.

    Raises:
        OSError: Of any operation; with ``ELOOP`` for links and with ``EINVAL`` for what is no file.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, name: str, content: bytes) -> None:
        """Put a file in its place at once."""
        self.place(name, lambda path: path.write_bytes(content))

    def place(self, name: str, save: Callable[[Path], object]) -> None:
        """As ``write``, of what ``save`` writes to the path that it is given."""
        path = self._root / name
        self._require_no_link(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        place_files({path: save})

    def open(self, name: str) -> BufferedReader:
        """For reading."""
        with self._inside(name) as (folder, last):
            try:
                descriptor = os.open(last, _FILE, dir_fd=folder)
            except OSError as error:
                raise _explained(error) from None
        try:
            _require_file(os.fstat(descriptor))
        except OSError:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "rb")

    def read(self, name: str, size: int) -> bytes:
        """The first ``size`` bytes."""
        with self.open(name) as file:
            return file.read(size)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None for a folder."""
        with self._inside(name) as (folder, last):
            found = os.stat(last, dir_fd=folder, follow_symlinks=False) if last else os.fstat(folder)
        if stat.S_ISDIR(found.st_mode):
            return None
        _require_file(found)
        return found.st_size

    def names(self, prefix: str) -> list[str]:
        """What lies in a folder, one level deep."""
        with self._inside(f"{prefix}/" if prefix else "") as (folder, _):
            return os.listdir(folder)

    def remove(self, name: str) -> None:
        """Remove a file or a link, or a folder with all in it."""
        path = self._root / name
        self._require_no_link(path.parent)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    @contextlib.contextmanager
    def _inside(self, name: str) -> Iterator[tuple[int, str]]:
        """The folder in which a name lies, opened step by step so that no link is taken, and its last part."""
        *folders, last = name.split("/")
        here = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for folder in folders:
                try:
                    there = os.open(folder, _FOLDER, dir_fd=here)
                except NotADirectoryError as error:
                    found = os.stat(folder, dir_fd=here, follow_symlinks=False)
                    raise _link() if stat.S_ISLNK(found.st_mode) else error from None
                except OSError as error:
                    raise _explained(error) from None
                os.close(here)
                here = there
            yield here, last
        finally:
            os.close(here)

    def _require_no_link(self, folder: Path) -> None:
        while folder != self._root:
            if folder.is_symlink():
                raise _link()
            folder = folder.parent


def _require_file(found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _link()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def _explained(error: OSError) -> OSError:
    return _link() if error.errno == errno.ELOOP else error


def _link() -> OSError:
    return OSError(errno.ELOOP, "it is a link, and those are not followed out of the folder of a run")

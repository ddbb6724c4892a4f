"""Files put in their places on a disk: all complete and flushed before the first old one is replaced."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

PARTIAL = re.compile(r"\..+\.partial")
"""Names of files that are being written, or that were when their process died."""


def place_files(saves: Mapping[Path, Callable[[Path], object]]) -> None:
    """Have each file written beside its place, then put all of them there; a reader never sees a part of one.

    Args:
        saves: For each file what writes it to the path that it is given. The folders exist.

    Raises:
        OSError: Whatever went wrong; each file is then still the old one or already the new one, and nothing else is
            left behind.
    """
    # A name of its own: two processes may write the same file at once.
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    partial = {path: path.with_name(f".{path.name}.{mark}.partial") for path in saves}
    try:
        for path, save in saves.items():
            _save(partial[path], save)
        for path in saves:
            os.replace(partial[path], path)
    except BaseException:
        for path in partial.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in saves}:
        _flush(folder)


def _save(path: Path, save: Callable[[Path], object]) -> None:
    path.touch()
    mode = path.stat().st_mode
    save(path)
    # safetensors puts a file of its own there, which nobody else could read.
    path.chmod(mode)
    _flush(path)


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder: the names are the server's business there.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)

"""Several files written as one: all are complete on the disk before the first old one is replaced."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


class ReportError(RuntimeError):
    """The report cannot be written; one sentence that says why and what to do."""


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes each file beside its old version, flushes it to the disk, and puts it in the old one's place.

    When anything fails before the last file is complete, the old files stay as they were and nothing is left behind.

    Args:
        folder: made when it does not exist.
        contents: file name to bytes.

    Raises:
        ReportError: the folder cannot be made or written, or the disk is full.
    """
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in contents}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with open(temporary[name], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name in contents:
            os.replace(temporary[name], folder / name)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ReportError(
            f"The report cannot be written to {folder} ({reason}); what was there before is untouched: "
            "free space or give another folder with out=FOLDER."
        ) from error
    finally:
        for path in temporary.values():
            _discard(path)


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder itself may be missing or read-only: there is nothing to remove then
        return

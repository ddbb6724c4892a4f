"""Several files written as one: on a disk all are complete before the first old one is replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ..refusal import Refusal
from ..storage.atomic import place_files
from ..storage.folders import Storage, StorageError


class ReportError(Refusal, RuntimeError):
    """The report cannot be written; one sentence that says why and what to do."""


def replace_files(folder: str | Path, contents: Mapping[str, bytes]) -> Path | str:
    """Replace files in a folder, all together on a disk (see `place_files`).

    In a bucket each file is replaced at once, in the order given, and the first that fails ends it.

    Args:
        folder: path or URL (``file://``, ``s3://``, ``gs://``); made when it does not exist.
        contents: file name to bytes.

    Returns:
        The folder: a path on a disk, the URL of a bucket.

    Raises:
        ReportError: the folder cannot be made or written, or the disk is full.
    """
    if isinstance(folder, str) and "://" in folder:
        try:
            storage = Storage(folder)
        except StorageError as error:
            raise ReportError(f"The report cannot be written: {error}") from error
        if not storage.is_local:
            _replace_objects(storage, contents)
            return storage.url
        folder = storage.path
    _replace_on_disk(Path(folder), contents)
    return Path(folder)


def _replace_objects(storage: Storage, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        try:
            storage.write(name, content)
        except StorageError as error:
            raise ReportError(
                f"The report in {storage.url} is not complete, and what is there may be of two runs: {error} "
                "Try again, or give another folder with out=FOLDER."
            ) from error


def _replace_on_disk(folder: Path, contents: Mapping[str, bytes]) -> None:
    saves: dict[Path, Callable[[Path], object]] = {
        folder / name: partial(_write, content=content) for name, content in contents.items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place_files(saves)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ReportError(
            f"The report cannot be written to {folder} ({reason}); every file that was there before is still whole: "
            "free space or give another folder with out=FOLDER."
        ) from error


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)

"""A finished reconstruction whose folder has no room: it is kept elsewhere, or in memory until there is some."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from ..audit import ReportError
from ..cluster import LostError
from ..coordinator import Reconstruction, Storage
from ..coordinator.result_file import write_result
from ..foreign_text import safe_lines
from ..settings.folder import write_settings
from ..settings.run import RunConfig
from ..storage.folders import StorageError
from .program import line

_LOOK_SECONDS = 5.0


@contextmanager
def kept_whatever_comes(found: Reconstruction, config: RunConfig, console: Console) -> Iterator[None]:
    """Where the report cannot be written meanwhile, put the reconstruction where it stays.

    Raises:
        LostError: It was put somewhere; the sentence says where, and the command that writes its report.
    """
    try:
        yield
    except (ReportError, StorageError) as error:
        if not isinstance(error.__cause__, OSError | StorageError):
            raise  # nothing was to be written: what the report needs is missing
        where = _place(found, config)
        if where is None:
            text = (
                f"{error} No other place had room for the images either: they are kept in memory until there is some."
            )
            console.print(safe_lines(text), markup=False, highlight=False, soft_wrap=True)
        while where is None:
            time.sleep(_LOOK_SECONDS)
            where = _place(found, config)
        raise LostError(
            f"{error} The finished reconstruction is in {where}, and this writes its report there: "
            f"{line('report', f'out={where}')}"
        ) from None


def _place(found: Reconstruction, config: RunConfig) -> str | None:
    """Keep the result where it belongs, or in the first place that has room; None where none has."""
    with contextlib.suppress(StorageError):
        write_result(Storage(config.out), found)
        return config.out
    for place in _places():
        with contextlib.suppress(OSError):
            # Only its user may read it: it holds images.
            folder = Path(tempfile.mkdtemp(prefix="gradinversion-kept-", dir=place))
            try:
                write_settings(Storage(folder), config)
                write_result(Storage(folder), found)
                return str(folder)
            except StorageError:
                shutil.rmtree(folder, ignore_errors=True)
    return None


def _places() -> list[str]:
    """Folders of this machine, most of them on other disks; the last one is in memory."""
    here = [tempfile.gettempdir(), str(Path.home()), os.getcwd(), "/var/tmp", "/dev/shm"]
    return [place for place in dict.fromkeys(here) if os.path.isdir(place)]

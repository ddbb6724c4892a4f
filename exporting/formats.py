"""Which formats there are, and what each needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from ..storage.folders import Storage
from .run_files import ExportError, RunFiles, read_run
from .tables import write_tables
from .tensorboard import write_events
from .wandb_run import write_offline_run


@dataclass(frozen=True)
class _Format:
    write: Callable[[RunFiles, Storage], list[str]]
    package: str | None = None
    """An extra of the same name brings it."""
    local: bool = False
    """Its library writes to a disk alone."""


FORMATS = {
    "csv": _Format(write_tables),
    "tensorboard": _Format(write_events, "tensorboard", local=True),
    "wandb": _Format(write_offline_run, "wandb", local=True),
}
"""By the name that ``export`` is given."""


def require_packages(names: Iterable[str], storage: Storage) -> None:
    """Refuse, before any work, formats that cannot be written here.

    Raises:
        ExportError: A package is missing, or the folder is a bucket.
    """
    for name in names:
        entry = FORMATS[name]
        if entry.package is not None and find_spec(entry.package) is None:
            raise ExportError(f"export={name} needs the package {entry.package}: pip install {entry.package}.")
        if entry.local and not storage.is_local:
            raise ExportError(f"export={name} writes to a disk, and out={storage.url} is none: give export=csv.")


def export(storage: Storage, names: Iterable[str]) -> list[str]:
    """Write what the run in a folder left in these formats, into the same folder.

    Args:
        storage: The folder.
        names: Of `FORMATS`.

    Returns:
        Names of the files and folders that were written.

    Raises:
        ExportError: There is nothing to write, a file is not what its name says, or a format cannot be written here.
        StorageError: The folder cannot be read or written.
    """
    names = tuple(names)
    require_packages(names, storage)
    run = read_run(storage)
    written = {name: FORMATS[name].write(run, storage) for name in names}
    if empty := [name for name, files in written.items() if not files]:
        raise ExportError(f"out={storage.url} has no loss curves for export={','.join(empty)}: give export=csv.")
    return [file for files in written.values() for file in files]

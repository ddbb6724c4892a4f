"""The settings in the folder of a run: what it was begun with is what it is continued, watched and reported with."""

from __future__ import annotations

from dataclasses import replace

from ..audit.files import ReportError
from ..capture import PrivateConfig
from ..capture.told_config import ToldConfig
from ..refusal import ConfigError
from ..storage.folders import Storage, StorageError
from .run import RunConfig, config_yaml, differences, parse_config

_FILE = "config.yaml"
_LARGEST = 2**20


def write_settings(storage: Storage, config: RunConfig) -> None:
    """Put the settings into a folder.

    Raises:
        StorageError: It cannot be written.
    """
    storage.write(_FILE, config_yaml(config).encode())


def read_settings(storage: Storage) -> RunConfig | None:
    """The settings that lie in a folder; None where there are none.

    Raises:
        ConfigError: What lies there is no configuration.
        StorageError: It cannot be read now.
    """
    if not storage.exists(_FILE):
        return None
    return parse_config(storage.read(_FILE, _LARGEST), storage.locate(_FILE))


def remove_settings(storage: Storage) -> None:
    """Have a folder belong to no run."""
    storage.remove(_FILE)


def open_folder(config: RunConfig) -> Storage:
    """The folder of a run that begins or goes on, with its settings in it.

    Raises:
        ConfigError: With ``resume``, the folder holds a run with other settings; every difference is named.
        ReportError: The folder cannot be written.
    """
    storage = Storage(config.out)
    stored = read_settings(storage) if config.resume else None
    # Before anything in the folder is written, so that the other run can still be resumed.
    if stored is not None and (found := differences(stored, config)):
        listed = "".join(f"\n  - {line}" for line in found)
        raise ConfigError([f"{storage.url} holds a run with other settings; give those, or another out:{listed}"])
    try:
        write_settings(storage, config)
    except StorageError as error:
        raise ReportError(f"out={config.out} cannot be written ({error}); give a folder that can.") from None
    return storage


def settings_of_the_run(config: RunConfig) -> RunConfig:
    """The settings that the run in this folder was begun with; what is given now only says where it is, and where the
    private images are.

    Raises:
        ReportError: The folder holds no run.
        ConfigError: The run was made without a fact that is told now.
    """
    stored = read_settings(Storage(config.out))
    if stored is None:
        raise ReportError(f"out={config.out} holds no run: there is no {_FILE} in it.")
    if config.told not in (ToldConfig(), stored.told):
        named = ", ".join(f"told.{name}" for name in config.told.given)
        raise ConfigError([f"{named}: the run in out={config.out} was made without it; run the attack again with it."])
    private = config.private if config.private != PrivateConfig() else stored.private
    return replace(stored, out=config.out, private=private)

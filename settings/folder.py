"""The settings in the folder of a run: what it was begun with is what it is continued, watched and reported with."""

from __future__ import annotations

from dataclasses import replace

from ..audit.files import ReportError
from ..capture import PrivateConfig
from ..capture.told_config import ToldConfig
from ..coordinator.checkpoints import require_no_saved_run
from ..refusal import ConfigError
from ..storage.folders import Storage, StorageError
from ..storage.lock import require_free
from ..storage.tensor_file import CheckpointError
from .own_code import remember_own_code, require_own_code
from .run import RunConfig, config_yaml, differences, parse_config
from .yaml_file import LARGEST_BYTES

_FILE = "config.yaml"


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
    return parse_config(storage.read(_FILE, LARGEST_BYTES), storage.locate(_FILE))


def remove_settings(storage: Storage) -> None:
    """Have a folder belong to no run."""
    storage.remove(_FILE)


def check_folder(config: RunConfig) -> Storage:
    """The folder of a run that begins or goes on; nothing in it is written yet.

    Raises:
        ConfigError: With ``resume``, it holds a run with other settings; every difference is named.
        CheckpointError: Without, it holds a run that only ``restart`` may clear.
        InUseError: Another run is under way in it on this machine.
        ReportError: It cannot be used.
    """
    storage = Storage(config.out)
    # First: what else is told leads to commands that must wait for its end.
    require_free(storage)
    if config.restart:
        return storage
    if not config.resume:
        try:
            require_no_saved_run(storage)
        except CheckpointError:
            raise
        except StorageError as error:
            raise _unusable(config, error) from None
        return storage
    stored = read_settings(storage)
    if stored is not None and (found := differences(stored, config)):
        listed = "".join(f"\n  - {line}" for line in found)
        raise ConfigError([f"{storage.url} holds a run with other settings; give those, or another out:{listed}"])
    return storage


def open_folder(config: RunConfig) -> Storage:
    """As ``check_folder``, with the settings put into the folder: for when all else of the run is known to be right.

    Raises:
        ConfigError, CheckpointError, InUseError: As in ``check_folder``.
        ReportError: The folder cannot be written.
    """
    storage = check_folder(config)
    try:
        write_settings(storage, config)
    except StorageError as error:
        raise _unusable(config, error) from None
    remember_own_code(storage, config)
    return storage


def _unusable(config: RunConfig, error: StorageError) -> ReportError:
    return ReportError(f"out={config.out} cannot be written ({error}); give a folder that can.")


def settings_of_the_run(config: RunConfig) -> RunConfig:
    """The settings that the run in this folder was begun with; what is given now only says where it is, where the
    private images are, and what is done with the verdict.

    Raises:
        ReportError: The folder holds no run.
        ConfigError: The run was made without a fact that is told now, or with code that nobody here has asked for.
    """
    storage = Storage(config.out)
    stored = read_settings(storage)
    if stored is None:
        raise ReportError(f"out={config.out} holds no run: there is no {_FILE} in it.")
    require_own_code(storage, stored, config)
    if config.told not in (ToldConfig(), stored.told):
        named = ", ".join(f"told.{name}" for name in config.told.given)
        raise ConfigError([f"{named}: the run in out={config.out} was made without it; run the attack again with it."])
    private = config.private if config.private != PrivateConfig() else stored.private
    audit = replace(stored.audit, redact=stored.audit.redact or config.audit.redact)
    fail_on = stored.fail_on if config.fail_on == "never" else config.fail_on
    export = config.export or stored.export
    return replace(stored, out=config.out, private=private, audit=audit, fail_on=fail_on, export=export)

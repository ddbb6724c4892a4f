"""Code that the settings in a folder name: it runs only for whoever names it too, or has begun that run.

A folder may come from a stranger, and ``module:callable`` in it could be anything that is installed. What a user's own
run was begun with is marked outside the folder, where only this user writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..capture.models import TIMM_PREFIX
from ..foreign_text import safe
from ..refusal import ConfigError
from ..storage.folders import Storage
from .run import RunConfig, is_preset_file


def own_code(config: RunConfig) -> dict[str, str]:
    """The ``module:callable`` values of a configuration, by key."""
    named = {"client.model": config.client.model, "agents.generator": config.agents.generator}
    return {
        key: value
        for key, value in named.items()
        if value is not None and ":" in value and not value.lower().startswith(TIMM_PREFIX)
    }


def remember_own_code(storage: Storage, config: RunConfig) -> None:
    """Mark that this user has begun a run in this folder with this code. Where that cannot be kept, the code must be
    named again."""
    code = own_code(config)
    if not code:
        return
    mark = _mark(storage, code)
    with contextlib.suppress(OSError):
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(mark, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600))


def require_own_code(storage: Storage, stored: RunConfig, given: RunConfig) -> None:
    """Refuse the code of a folder that nobody here has asked for.

    Args:
        storage: The folder.
        stored: The settings in it.
        given: Those of the command.

    Raises:
        ConfigError: With what to type, in one sentence.
    """
    code = own_code(stored)
    if not code or own_code(given) == code or _is_marked(_mark(storage, code)):
        return
    words = " ".join(shlex.quote(f"{key}={safe(value)}") for key, value in code.items())
    raise ConfigError(
        [
            f"{storage.locate('config.yaml')} names code that would run here, and no run of yours in this folder was "
            f"begun with it from {os.getcwd()}: if you trust it, name it in the command too, {words}."
        ]
    )


def require_code_of_preset(config: RunConfig, words: Sequence[str]) -> None:
    """Refuse the code of a preset file that the command does not name too: the file may be a stranger's.

    Args:
        config: What the words and the preset ask for.
        words: Of the command.

    Raises:
        ConfigError: With what to type, in one sentence.
    """
    unnamed = [f"{key}={safe(value)}" for key, value in own_code(config).items() if f"{key}={value}" not in words]
    if unnamed and is_preset_file(config.preset):
        raise ConfigError(
            [
                f"preset={safe(config.preset)} names code that would run here: if you trust it, name it in the command "
                f"too, {' '.join(map(shlex.quote, unnamed))}."
            ]
        )


def _mark(storage: Storage, code: Mapping[str, str]) -> Path:
    """A file whose name tells folder, code, and the working folder, since modules are looked for in that."""
    told = json.dumps([storage.url, os.getcwd(), sorted(code.items())])
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state, "gradinversion", "own-code", hashlib.sha256(told.encode()).hexdigest())


def _is_marked(mark: Path) -> bool:
    """Whether this user made the mark, and nobody else could have."""
    try:
        found = [os.lstat(mark), os.lstat(mark.parent)]
    except OSError:
        return False
    private = all(one.st_uid == os.geteuid() and not one.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for one in found)
    return private and stat.S_ISREG(found[0].st_mode)

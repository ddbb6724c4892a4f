"""Code that the settings in a folder name: it runs only for whoever names it too, or has begun that run.

A folder may come from a stranger, and ``module:callable`` in it could be anything that is installed. What a user's own
run was begun with is marked outside the folder, where only this user writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..capture.defences import taken_apart
from ..capture.models import TIMM_PREFIX
from ..coordinator.identity import attack_plugins
from ..foreign_text import safe
from ..plugins import Plugin, PluginKind, find_plugin, is_plugin
from ..refusal import ConfigError
from ..storage.folders import Storage
from .keys import format_value
from .offered import is_preset_file
from .run import RunConfig, settings


def own_code(config: RunConfig) -> dict[str, str]:
    """What a configuration names that is code and does not come with the package, by key, as a command would say it.

    That is ``module:callable``, plug-ins by the names of their entry points, and grids in which any of these is tried.
    """
    built = {"client.model": config.client.model, "agents.generator": config.agents.generator}
    named = [key for key, value in built.items() if value is not None and _is_built(value)]
    named += [key for key, names in _plugins(config).items() if names]
    named += [key for key, names in _tried(config).items() if names]
    values = settings(config)
    return {key: format_value(values[key]) for key in named}


def own_plugins(config: RunConfig) -> tuple[Plugin, ...]:
    """The plug-ins that a configuration names, found: so that what is missing is known before any work.

    Raises:
        PluginError: One is not there, or cannot be imported.
    """
    stated = (*config.client.defences, *config.told.stated_defences)
    found = [find_plugin(PluginKind.DEFENCE, one.name) for one in stated if one.is_own] + attack_plugins(config)
    return tuple({(one.kind, one.name): one for one in found}.values())


_KINDS = {
    "client.defence": PluginKind.DEFENCE,
    "told.defences": PluginKind.DEFENCE,
    "labels": PluginKind.LABEL_RULE,
    "objective.priors": PluginKind.PRIOR,
    "peeling.decoder": PluginKind.DECODER,
    "registration.method": PluginKind.REGISTRATION,
}
_BUILT = ("client.model", "agents.generator")
# What may stand between the names in one value.
_BETWEEN = re.compile(r"[+,\s\[\]\"']+")


def _plugins(config: RunConfig) -> dict[str, list[str]]:
    """The names of the plug-ins under each key that may name one."""
    alone = {
        "labels": config.own_label_rule,
        "peeling.decoder": config.peeling.own_decoder,
        "registration.method": config.registration.own_method,
    }
    return {
        "client.defence": [one.name for one in config.client.defences if one.is_own],
        "told.defences": [one.name for one in config.told.stated_defences if one.is_own],
        "objective.priors": [one.name for one in config.objective.own_priors],
        **{key: [] if name is None else [name] for key, name in alone.items()},
    }


def _tried(config: RunConfig) -> dict[str, list[str]]:
    """What the grid of an audit names that is code, by the key of the grid."""
    defences: list[str] = []
    for word in config.sweep.defences:
        for part in word.split("+"):
            key, equals, value = part.partition("=")
            defences += _named(key.strip(), value) if equals else _named("client.defence", part)
    axes, key = list[str](), ""
    for word in config.sweep.axes:
        begins, colon, value = word.partition(":")
        if colon and begins.strip() in settings(config):
            key, word = begins.strip(), value
        axes += _named(key, word)
    return {"sweep.defences": defences, "sweep.axes": axes}


def _named(key: str, value: str) -> list[str]:
    """The code in the words of one value, whatever stands between and behind its names."""
    if key in _BUILT:
        return [value.strip()] if _is_built(value.strip()) else []
    if key not in _KINDS:
        return []
    parts = [part for part in _BETWEEN.split(value) if part]
    names = dict.fromkeys([*(taken_apart(part)[0] for part in parts), *parts])
    return [name for name in names if is_plugin(_KINDS[key], name)]


def require_seen_code(config: RunConfig, cells: Iterable[RunConfig]) -> None:
    """Refuse a grid whose cells run code that `own_code` did not see in its words, however these are written.

    Args:
        config: Of the audit.
        cells: What its grid makes of it.

    Raises:
        ConfigError: With the code, and where to name it.
    """
    seen = _names(config).union(*_tried(config).values())
    for cell in cells:
        if unseen := _names(cell) - seen:
            raise ConfigError(
                [
                    f"a cell of the grid would run {', '.join(map(safe, sorted(unseen)))}, and sweep does not name it "
                    "plainly: give it as KEY:NAME in sweep.axes."
                ]
            )


def _names(config: RunConfig) -> set[str]:
    """The code that a configuration itself names."""
    built = {name for name in (config.client.model, config.agents.generator) if name is not None and _is_built(name)}
    return built.union(*_plugins(config).values())


def _is_built(name: str) -> bool:
    return ":" in name and not name.lower().startswith(TIMM_PREFIX)


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

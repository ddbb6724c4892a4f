"""The cells of an audit: one run for every combination of the settings that are varied."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import PurePath
from typing import TypeVar

from ..audit.config import CONTROLS
from ..capture.client.images import PHOTOS
from ..capture.defences import taken_apart
from ..coordinator import Storage
from ..refusal import ConfigError
from ..settings.keys import format_value, keys
from ..settings.own_code import require_seen_code
from ..settings.run import RunConfig, settings, with_settings
from ..settings.sweep import SweepConfig
from .kinds import Kind, goes_with_a_defence, kind_of
from .presets import is_fixed, settings_of_preset

CELLS = "cells"
"""The folder in ``out`` in which each cell has one."""
UNTRAINED = "untrained"
UNDEFENDED = "no defence"
PRESET = "preset"
"""The axis of published attacks: the one along which many keys change at once."""
_MOST_CELLS = 1000
_NAME = re.compile(r"[^A-Za-z0-9._=-]+")
_LONGEST_NAME = 80
_Path = TypeVar("_Path", str, str | None)


@dataclass(frozen=True)
class Level:
    """One value on an axis."""

    name: str
    """In words."""
    settings: dict[str, str]
    """What it sets, key by key, as words."""


@dataclass(frozen=True)
class Axis:
    """Something that is varied."""

    kind: Kind
    title: str
    levels: tuple[Level, ...]
    base: int
    """The level that the audit's own settings have; the first one where they have none of them."""


@dataclass(frozen=True)
class Cell:
    """One combination."""

    name: str
    """Of its folder."""
    levels: tuple[int, ...]
    """By axis."""
    title: str
    config: RunConfig | None
    """None where these settings do not go together."""
    problem: str = ""
    """Why not, in one sentence."""


@dataclass(frozen=True)
class Grid:
    """What an audit compares."""

    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    """The most informative first: fewest changes from the base, then in the order in which levels were given."""

    @property
    def base(self) -> tuple[int, ...]:
        """The levels of the user's own settings."""
        return tuple(axis.base for axis in self.axes)

    def changes(self, levels: tuple[int, ...]) -> list[int]:
        """Positions of the axes on which a combination differs from the base in a setting of the client.

        The model's state, the data and the attack are no settings: whatever their levels, nothing was changed.
        """
        return [
            position
            for position, axis in enumerate(self.axes)
            if axis.kind.is_setting and levels[position] != axis.base
        ]

    def distance(self, levels: tuple[int, ...]) -> tuple[int, int]:
        """How far a combination is from the base: in settings first, then in all else."""
        changed = len(self.changes(levels))
        return changed, sum(level != base for level, base in zip(levels, self.base, strict=True)) - changed


def make_grid(config: RunConfig) -> Grid:
    """The grid that a configuration asks for.

    Raises:
        ConfigError: An axis cannot be read, there are too many cells, not one of them can be run, or one would run code
            that the settings do not plainly name.
    """
    for key in _CAPTURED:
        if getattr(config, key) is not None:
            given = f"{key}={getattr(config, key)}"
            raise ConfigError([f"{given}: an audit makes its own updates; attack a captured one instead."])
    axes = _axes(config)
    count = 1
    for axis in axes:
        count *= len(axis.levels)
    if count > _MOST_CELLS:
        raise ConfigError([f"The grid has {count:,} cells; at most {_MOST_CELLS:,} are run: shorten its lists."])
    taken: set[str] = set()
    cells = [_cell(config, axes, levels, taken) for levels in product(*(range(len(axis.levels)) for axis in axes))]
    if all(cell.config is None for cell in cells):
        raise ConfigError(list(dict.fromkeys(cell.problem for cell in cells)))
    require_seen_code(config, [cell.config for cell in cells if cell.config is not None])
    grid = Grid(axes, ())
    return replace(grid, cells=tuple(sorted(cells, key=lambda cell: grid.distance(cell.levels))))


def _axes(config: RunConfig) -> tuple[Axis, ...]:
    sweep = config.sweep
    states = sweep.states or (config.client.weights or UNTRAINED,)
    found = [
        _axis(config, Kind.STATE, "model", _states(states)),
        _axis(config, Kind.BN, "batch norm", [Level(f"{mode} BN", {"client.bn": mode}) for mode in sweep.bn]),
        *(_axis(config, kind_of(key), key, levels) for key, levels in _further(config)),
        _axis(config, Kind.DEFENCE, "defence", [_defence(text) for text in sweep.defences]),
        _axis(config, Kind.BATCH, "batch", [_batch(size) for size in sweep.batch_sizes]),
    ]
    # What a preset sets another axis may set otherwise: that one counts.
    found.sort(key=lambda axis: axis.title != PRESET)
    varied = ([PRESET] if axis.title == PRESET else axis.levels[0].settings for axis in found)
    keys_twice = [key for key, count in _count(varied).items() if count > 1]
    if keys_twice:
        raise ConfigError([f"{key} is varied on two axes: give it on one." for key in keys_twice])
    return tuple(found)


def _count(groups: Iterable[Iterable[str]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for group in groups:
        for key in group:
            found[key] = found.get(key, 0) + 1
    return found


def _axis(config: RunConfig, kind: Kind, title: str, levels: Sequence[Level]) -> Axis:
    unique = list({tuple(level.settings.items()): level for level in levels}.values())
    client = [(one.name, f"{one.strength!r}") for one in config.client.defences]
    known = {key: format_value(value) for key, value in settings(config).items()} | _defence_settings(client)
    same = [all(known[key] == word for key, word in level.settings.items()) for level in unique]
    return Axis(kind, title, tuple(unique), same.index(True) if True in same else 0)


def _batch(size: int) -> Level:
    return Level(f"batch {size}", {"client.batch_size": str(size)})


def _states(files: Sequence[str]) -> list[Level]:
    """Named after their files, with the folders where two files have the same name."""
    stems = _count([PurePath(name).stem] for name in dict.fromkeys(files))
    found = []
    for name in files:
        stem = PurePath(name).stem
        weights = "none" if name == UNTRAINED else name
        found.append(Level(stem if stems[stem] == 1 else name, {"client.weights": weights}))
    return found


def _defence(text: str) -> Level:
    """``name:strength``, further ones of a combination and ``key=value``, with plus signs between; a strength may be
    left out."""
    words = text.split("+")
    others = [word for word in words if "=" in word]
    parts = [_part(word, text) for word in words if word not in others]
    if words[0] in others:
        raise ConfigError([f"sweep.defences={text}: begin with a defence, such as noise:0.1."])
    found = _defence_settings(parts)
    for word in others:
        key, _, value = word.partition("=")
        if key not in keys(RunConfig):
            raise ConfigError([f"sweep.defences={text}: {key} is no key; after a plus sign give a key as key=value."])
        if not goes_with_a_defence(key):
            raise ConfigError(
                [f"sweep.defences={text}: {key} is no setting by which a client defends itself; vary it in sweep.axes."]
            )
        found[key] = value
    name = " + ".join(f"{name} {strength}" if strength else name for name, strength in parts)
    return Level(" ".join([UNDEFENDED if parts == [("none", "")] else name, *others]), found)


def _defence_settings(parts: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What sets these defences, by their names and strengths in words; in the same words wherever they come from."""
    if len(parts) == 1:
        name, strength = parts[0]
        return {"client.defence": name, "client.defence_strength": format_value(float(strength or 0))}
    # No plus sign within a number.
    numbers = [str(float(strength)).removesuffix(".0").replace("e+", "e") if strength else "" for _, strength in parts]
    joined = "+".join(f"{name}:{number}" if number else name for (name, _), number in zip(parts, numbers, strict=True))
    return {"client.defence": joined, "client.defence_strength": format_value(0.0)}


def _part(word: str, text: str) -> tuple[str, str]:
    name, number = taken_apart(word)
    strength = number or ""
    try:
        float(strength or 0)
    except ValueError:
        raise ConfigError([f"sweep.defences={text}: give each one as name:number, such as noise:0.1."]) from None
    return name, strength


def _further(config: RunConfig) -> list[tuple[str, list[Level]]]:
    """Axes from words such as ``client.image_size:32``, ``64``: a word that begins with a key begins an axis."""
    known = keys(RunConfig)
    found: list[tuple[str, list[Level]]] = []
    for word in config.sweep.axes:
        key, colon, value = word.partition(":")
        if colon and key in known:
            found.append((key, []))
        elif not found:
            raise ConfigError(
                [f"sweep.axes={word}: begin with a key, a colon and its values, as client.classes:10,20."]
            )
        else:
            key, value = found[-1][0], word
        sets = settings_of_preset(config, value) if key == PRESET else {key: value}
        found[-1][1].append(Level(f"{key.rpartition('.')[2]} {value}", sets))
    refused = [key for key, _ in found if is_fixed(key)]
    if refused:
        raise ConfigError([f"sweep.axes={key}: this key cannot be varied." for key in refused])
    return found


_CAPTURED = ("update", "before", "after")


def _cell(config: RunConfig, axes: Sequence[Axis], levels: tuple[int, ...], taken: set[str]) -> Cell:
    chosen = [axis.levels[level] for axis, level in zip(axes, levels, strict=True)]
    merged = {key: word for level in chosen for key, word in level.settings.items()}
    # The names that people look for first come first.
    title = ", ".join(level.name for level in reversed(chosen))
    name = _folder_name(title, taken)
    try:
        found = with_settings(_common(config, name), merged)
    except ConfigError as error:
        return Cell(name, levels, title, None, " ".join(error.problems))
    return Cell(name, levels, title, _with_absolute_paths(found))


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """A cell's process may have another working folder. What does not exist here may exist there, and stays."""
    client, audit = config.client, config.audit
    return replace(
        config,
        client=replace(client, images=_absolute(client.images), weights=_absolute(client.weights)),
        audit=replace(audit, pool=_absolute(audit.pool), lpips_weights=_absolute(audit.lpips_weights)),
    )


def _absolute(path: _Path) -> _Path:
    if path is None or path == PHOTOS:
        return path
    expanded = os.path.expanduser(path)
    return os.path.abspath(expanded) if os.path.exists(expanded) else path


def _common(config: RunConfig, name: str) -> RunConfig:
    """What every cell has: its own folder, and all controls."""
    audit = replace(config.audit, controls=CONTROLS, pool=config.audit.pool or PHOTOS)
    out = Storage(config.out).locate(f"{CELLS}/{name}")
    return replace(config, out=out, audit=audit, resume=False, budget=None, sweep=SweepConfig())


def _folder_name(title: str, taken: set[str]) -> str:
    name = _NAME.sub("-", title.replace(", ", "_").replace(" + ", "-").replace(" ", "-")).strip("-.")
    if name in taken or len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(title.encode()).hexdigest()[:8]}"
    taken.add(name)
    return name

"""The keys of a configuration: their names, types and defaults, and the reading and writing of one value."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NOTHING = ("", "none", "null")
_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Key:
    """One key that a user may set."""

    name: str
    """As written on the command line, for example ``agents.count``."""
    kind: Any
    """Its type, resolved."""
    default: Any
    owner: type
    """The dataclass that declares it."""


def keys(config: type, prefix: str = "") -> dict[str, Key]:
    """Every key of the configuration by its dotted name, those of the run itself first, then group by group."""
    hints = typing.get_type_hints(config)
    found, groups = {}, {}
    for entry in fields(config):
        name, kind = prefix + entry.name, hints[entry.name]
        if is_dataclass(kind):
            groups.update(keys(typing.cast(type, kind), f"{name}."))
        else:
            found[name] = Key(name, kind, _default(entry), config)
    return found | groups


def format_value(value: Any) -> str:
    """A value as one would write it on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(format_value, value))
    return str(value.value if isinstance(value, Enum) else value)


def convert(kind: Any, value: Any) -> Any:
    """A value of this type from what was written, be it a word or yaml.

    Raises:
        ValueError: It cannot be read as one.
    """
    text, inner = format_value(value), _unless_none(kind)
    if inner is not kind and text.lower() in _NOTHING:
        return None
    if value is None or text == "???":  # what OmegaConf writes for a missing value
        raise ValueError(text)
    if typing.get_origin(inner) is tuple:
        return [convert(typing.get_args(inner)[0], item.strip()) for item in text.split(",") if item.strip()]
    if inner is str:
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # plain text: OmegaConf is to interpolate nothing
    if inner in (int, float):
        return inner(text)
    choices = _BOOLEANS if inner is bool else {choice.value.lower(): choice for choice in inner}
    if text.lower() not in choices:
        raise ValueError(text)
    return choices[text.lower()]


def wanted(kind: Any) -> str:
    """What may be given for a value of this type, in words."""
    inner = _unless_none(kind)
    if typing.get_origin(inner) is tuple:
        return f"{wanted(typing.get_args(inner)[0])}, several separated by commas"
    if inner in _WANTED:
        return _WANTED[inner] + (" or none" if inner is not kind else "")
    return f"one of {', '.join(choice.value for choice in inner)}"


def _unless_none(kind: Any) -> Any:
    """``X`` for ``X | None``, and any other type as it is."""
    if not isinstance(kind, types.UnionType):
        return kind
    (inner,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    return inner


def unknown(name: str, known: Mapping[str, object]) -> str:
    """What to say of a key that does not exist, with the one that was probably meant."""
    group = [key for key in known if key.startswith(f"{name}.")]
    if group:
        return f"{name} is a group of keys: give one of {', '.join(group)}."
    last = name.rpartition(".")[2]
    near = [key for key in known if key.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(name, known, n=1)
    leaves = {key.rpartition(".")[2]: key for key in known}
    near = near or [leaves[leaf] for leaf in difflib.get_close_matches(last, leaves, n=1)]
    advice = f"did you mean {' or '.join(near)}?" if near else "--help lists every key."
    return f"{name} is not a key: {advice}"


def _default(entry: Field[Any]) -> Any:
    return entry.default_factory() if entry.default_factory is not MISSING else entry.default

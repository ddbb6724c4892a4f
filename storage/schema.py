"""Whether values that were read from a file are of the types that they are declared to be."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

_LARGEST_NUMBER = 2**63


def misfit(value: Any, kind: Any, where: str = "it") -> str | None:
    """Where a value is not of its type, in a few words; None where all of it is.

    Args:
        value: Plain values, containers, dataclasses and tensors.
        kind: A type, with what its containers hold; dataclasses and ``TypedDict`` are looked into.
        where: What the value is called.
    """
    if kind is Any or isinstance(kind, typing.TypeVar):
        return None
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        found = [misfit(value, one, where) for one in typing.get_args(kind)]
        return None if None in found else found[0]
    if origin in _CONTAINERS:
        return _CONTAINERS[origin](value, typing.get_args(kind), where)
    if origin is not None:
        return misfit(value, origin, where)  # of a generic class, what it holds may be anything
    if typing.is_typeddict(kind):
        return _keys_misfit(value, kind, where)
    if kind in _PLAIN:
        return None if _PLAIN[kind](value) else _not(value, kind, where)
    if not isinstance(value, kind):
        return _not(value, kind, where)
    return _first(_parts(value, kind, where)) if is_dataclass(kind) else None


def _not(value: Any, kind: Any, where: str) -> str:
    return f"{where} is a {type(value).__name__} and no {getattr(kind, '__name__', str(kind))}"


def _first(parts: typing.Iterable[tuple[Any, Any, str]]) -> str | None:
    return next((found for value, kind, where in parts if (found := misfit(value, kind, where))), None)


def _parts(value: Any, kind: Any, where: str) -> typing.Iterator[tuple[Any, Any, str]]:
    hints = _hints(kind)
    return ((getattr(value, one.name), hints[one.name], f"{where}.{one.name}") for one in fields(kind))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _keys_misfit(value: Any, kind: Any, where: str) -> str | None:
    hints = _hints(kind)
    if not isinstance(value, dict) or not kind.__required_keys__ <= value.keys() <= hints.keys():
        return f"{where} does not have the entries {', '.join(hints)}"
    return _first((one, hints[key], f"{where}.{key}") for key, one in value.items())


def _mapping(value: Any, kinds: tuple[Any, ...], where: str) -> str | None:
    if not isinstance(value, dict):
        return _not(value, dict, where)
    pairs = ((part, kind, where) for pair in value.items() for part, kind in zip(pair, kinds, strict=True))
    return _first(pairs)


def _list(value: Any, kinds: tuple[Any, ...], where: str) -> str | None:
    if not isinstance(value, list):
        return _not(value, list, where)
    return _first((one, kinds[0], where) for one in value)


def _tuple(value: Any, kinds: tuple[Any, ...], where: str) -> str | None:
    if not isinstance(value, tuple):
        return _not(value, tuple, where)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return _first((one, kinds[0], where) for one in value)
    if len(value) != len(kinds):
        return f"{where} has {len(value)} entries and not {len(kinds)}"
    return _first((one, kind, where) for one, kind in zip(value, kinds, strict=True))


def _choice(value: Any, choices: tuple[Any, ...], where: str) -> str | None:
    return None if value in choices else _not(value, "choice", where)


_CONTAINERS: dict[Any, Callable[[Any, tuple[Any, ...], str], str | None]] = {
    dict: _mapping,
    Mapping: _mapping,
    list: _list,
    tuple: _tuple,
    Sequence: _tuple,
    typing.Literal: _choice,
}
# A bool is an int to Python, and a whole number a float to JSON.
_PLAIN: dict[Any, Callable[[Any], bool]] = {
    bool: lambda value: type(value) is bool,
    int: lambda value: type(value) is int and abs(value) < _LARGEST_NUMBER,
    float: lambda value: type(value) is float or (type(value) is int and abs(value) < _LARGEST_NUMBER),
    str: lambda value: type(value) is str,
    type(None): lambda value: value is None,
}

"""Code of the user's own in place of a part of the package: found by ``module:callable`` or by an entry point's name.

Whoever wants a part (a prior, a label rule, a way to register, a defence, a decoder) asks here, and only for what a
command names: to import is to run. The protocol of each part stands beside the part.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from .foreign_text import safe
from .refusal import Refusal

_NAME = re.compile(r"[A-Za-z_][\w.-]{0,99}", re.ASCII)
_OWN = re.compile(r"[A-Za-z_][\w.]{0,199}:[A-Za-z_][\w.]{0,99}", re.ASCII)


class PluginError(Refusal, ValueError):
    """Code of the user's own that cannot be found, or that does not keep the protocol of its kind."""


class PluginKind(StrEnum):
    """What a plug-in stands in for; the value is what people read."""

    PRIOR = "prior"
    LABEL_RULE = "label rule"
    REGISTRATION = "registration"
    DEFENCE = "defence"
    DECODER = "decoder"

    @property
    def group(self) -> str:
        """Of its entry points, such as ``gradinversion.label_rules``."""
        return f"gradinversion.{self.value.replace(' ', '_')}s"


@dataclass(frozen=True)
class Plugin:
    """One that was found."""

    kind: PluginKind
    name: str
    """As the command has it."""
    call: Callable[..., Any]
    source: str
    """Where it comes from, for a report: its file with the SHA-256 of that, and the distribution that installed it."""


def is_own_code(name: str) -> bool:
    """Whether a name is written as ``module:callable``."""
    return _OWN.fullmatch(name) is not None


def is_plugin(kind: PluginKind, name: str) -> bool:
    """Whether a name is one that `find_plugin` would look for; nothing of it is imported."""
    return is_own_code(name) or (_NAME.fullmatch(name) is not None and name in installed(kind))


@cache
def installed(kind: PluginKind) -> dict[str, tuple[EntryPoint, ...]]:
    """The entry points of a kind by their names, read off the metadata of what is installed."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in sorted(entry_points(group=kind.group)):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def find_plugin(kind: PluginKind, name: str) -> Plugin:
    """The plug-in of this name. It is imported, so a name must have been trusted before.

    Args:
        kind: What it is to be.
        name: ``module:callable``, or the name of an entry point in the group of its kind.

    Raises:
        PluginError: It is not there, cannot be imported, or cannot be called.
    """
    if is_own_code(name):
        call = import_callable(name, kind.value)
        return Plugin(kind, name, call, _file(name))
    points = installed(kind).get(name, ())
    if len(points) != 1:
        raise PluginError(_not_one(kind, name, points))
    distribution = points[0].dist
    by = f", installed by {distribution.name} {distribution.version}" if distribution is not None else ""
    call = import_callable(points[0].value, kind.value)
    return Plugin(kind, name, call, f"{points[0].value}: {_file(points[0].value)}{by}")


def import_callable(name: str, what: str) -> Callable[..., Any]:
    """What a ``module:callable`` names. The current folder is looked at last.

    Args:
        name: See above; the module is imported.
        what: For errors: what is looked for.

    Raises:
        PluginError: It cannot be imported, or cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    # Last, so that nothing in the current folder takes the place of what is installed.
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    # A script without a guard ends the process where it is imported.
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"the {what} {name!r} cannot be imported ({type(error).__name__}: {error}); give module:callable of a "
            "module in the current folder or in one on PYTHONPATH"
        ) from error
    found: Any = module if attribute else None
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        near = difflib.get_close_matches(attribute, [key for key, value in vars(module).items() if callable(value)])
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise PluginError(f"the module {module_name!r} has no callable {attribute!r}{hint}")
    call: Callable[..., Any] = found
    return call


def accepts(call: Callable[..., Any], keyword: str) -> bool:
    """Whether a callable takes an argument of this name."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.kind is p.VAR_KEYWORD or (p.name == keyword and p.kind is not p.POSITIONAL_ONLY) for p in parameters)


def called(plugin: Plugin, *arguments: Any, **keywords: Any) -> Any:
    """What a plug-in makes of its arguments.

    Raises:
        PluginError: It fails, with its own error in the sentence.
    """
    try:
        return plugin.call(*arguments, **keywords)
    except Refusal:
        raise
    # The user's own code may raise anything, and must not end an attack with the status of one that found nothing.
    except (Exception, SystemExit) as error:
        raise broken(plugin, f"failed with {type(error).__name__}: {error}") from error


def broken(plugin: Plugin, how: str) -> PluginError:
    """The error for a plug-in that does not keep its protocol.

    Args:
        plugin: Which.
        how: What it did, and what it must do.
    """
    return PluginError(f"the {plugin.kind} {plugin.name!r} {how}")


def _not_one(kind: PluginKind, name: str, points: tuple[EntryPoint, ...]) -> str:
    if points:
        homes = " and ".join(
            sorted(str(point.dist.name if point.dist is not None else point.value) for point in points)
        )
        return f"the {kind} {name!r} is installed by {homes}: name the one that is meant as module:callable"
    known = ", ".join(installed(kind)) or "none"
    return (
        f"no {kind} is called {safe(name)!r}: give module:callable, or an entry point of the group {kind.group} "
        f"(installed: {known})"
    )


def _file(name: str) -> str:
    """The file of a module that is imported, and what it holds."""
    module = sys.modules[name.partition(":")[0]]
    path = getattr(module, "__file__", None)
    if path is None:
        return "a module without a file"
    try:
        return f"{Path(path).name}, SHA-256 {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"
    except OSError:
        return f"{Path(path).name}, which cannot be read"

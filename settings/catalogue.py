"""Every key with its type, default and meaning, read off the sources of the settings: nothing of them is imported.

To import the settings is to import torch, which takes seconds; a question about a key, or a slip in a word, is answered
before that. A test holds what is read here against the dataclasses themselves.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import GenericAlias
from typing import Any, cast

_ROOT = Path(__file__).resolve().parents[1]
_TYPES: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}


@dataclass(frozen=True)
class Entry:
    """One key that a user may set."""

    name: str
    """As written on the command line, for example ``agents.count``."""
    kind: Any
    """Its type; of a choice an enumeration of the same values."""
    default: Any
    meaning: str
    """What stands below its field."""
    summary: str
    """What stands below the dataclass that declares it."""


@cache
def catalogue() -> dict[str, Entry]:
    """Every key by its name, those of the run itself first, then group by group."""
    return _entries(_Class(*_module("settings.run").find("RunConfig")), "")


def _entries(config: _Class, prefix: str) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    groups: dict[str, Entry] = {}
    for owner, line, below in config.fields():
        assert isinstance(line.target, ast.Name)
        name = prefix + line.target.id
        group = owner.group(line.annotation)
        if group is not None:
            groups |= _entries(group, f"{name}.")
            continue
        default = owner.module.value(line.value)
        found[name] = Entry(name, owner.module.type_of(line.annotation), default, below, config.summary)
    return found | groups


@dataclass(frozen=True)
class _Module:
    """A file of the package, by its name within that."""

    name: str
    is_package: bool
    tree: ast.Module

    def find(self, name: str) -> tuple[_Module, ast.AST]:
        """The module that defines a name, and the class or the expression that it is; imports are followed."""
        for statement in self.tree.body:
            match statement:
                case ast.ClassDef(name=defined) if defined == name:
                    return self, statement
                case ast.Assign(targets=[ast.Name(id=defined)], value=value) if defined == name:
                    return self, value
                case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                    for one, value in zip(names, values, strict=True):
                        if isinstance(one, ast.Name) and one.id == name:
                            return self, value
                case ast.ImportFrom(module=module, names=names, level=level) if level:
                    for alias in names:
                        if (alias.asname or alias.name) == name:
                            return _module(self._absolute(module, level)).find(alias.name)
        raise LookupError(f"{name} is not defined in {self.name}")

    def _absolute(self, module: str | None, level: int) -> str:
        base = self.name.split(".")
        base = base[: len(base) - level + self.is_package]
        return ".".join([*base, *([module] if module else [])])

    def type_of(self, annotation: ast.expr) -> Any:
        """The type that an annotation means."""
        match annotation:
            case ast.Constant(value=None):
                return None
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return self.type_of(left) | self.type_of(right)
            case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[inner, _])):
                return GenericAlias(tuple, (self.type_of(inner), ...))
            case ast.Name(id=name):
                return _TYPES[name] if name in _TYPES else self.choices(name)
        raise LookupError(f"{ast.unparse(annotation)} in {self.name} is no type of a setting")

    def choices(self, name: str) -> type[Enum]:
        """An enumeration with the members of the one of this name."""
        module, definition = self.find(name)
        assert isinstance(definition, ast.ClassDef)
        members = {
            line.targets[0].id: module.value(line.value)
            for line in definition.body
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
        }
        make: Any = StrEnum  # mypy takes a call of its functional form for a definition
        return cast(type[Enum], make(name, members))

    def value(self, expression: ast.expr | None) -> Any:
        """What a default is: a literal, a constant of a module, or a member of an enumeration."""
        match expression:
            case ast.Name(id=name):
                module, found = self.find(name)
                assert isinstance(found, ast.expr)
                return module.value(found)
            case ast.Attribute(value=ast.Name(id=name), attr=member):
                return self.choices(name)[member]
            case None:
                raise LookupError(f"a setting in {self.name} has no default")
        return ast.literal_eval(expression)


@dataclass(frozen=True)
class _Class:
    """A dataclass of settings, and where it is defined."""

    module: _Module
    definition: ast.AST

    @property
    def summary(self) -> str:
        """Its docstring."""
        assert isinstance(self.definition, ast.ClassDef)
        return ast.get_docstring(self.definition) or ""

    def fields(self) -> Iterator[tuple[_Class, ast.AnnAssign, str]]:
        """Each field with what stands below it, and the class that has it; those of the bases first."""
        assert isinstance(self.definition, ast.ClassDef)
        for base in self.definition.bases:
            assert isinstance(base, ast.Name)
            if base.id != "Checked":
                yield from _Class(*self.module.find(base.id)).fields()
        for line, below in pairwise([*self.definition.body, ast.Pass()]):
            if isinstance(line, ast.AnnAssign):
                yield self, line, _text(below)

    def group(self, annotation: ast.expr) -> _Class | None:
        """The dataclass that a field holds; None where it holds a value."""
        if not isinstance(annotation, ast.Name) or annotation.id in _TYPES:
            return None
        found = _Class(*self.module.find(annotation.id))
        assert isinstance(found.definition, ast.ClassDef)
        enumerates = any("Enum" in ast.unparse(base) for base in found.definition.bases)
        return None if enumerates else found


def _text(line: ast.stmt) -> str:
    match line:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return text
    return ""


@cache
def _module(name: str) -> _Module:
    path = _ROOT.joinpath(*name.split("."))
    is_package = path.is_dir()
    path = path / "__init__.py" if is_package else path.with_suffix(".py")
    return _Module(name, is_package, ast.parse(path.read_text(encoding="utf-8")))

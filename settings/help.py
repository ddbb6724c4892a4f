"""The text behind ``--help all`` and ``--help KEY``: every key with its default and meaning."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

from .keys import Key, format_value, keys, unknown, wanted
from .run import RunConfig
from .usage import COLUMN, columns, preset_names, preset_text, whole_usage


def help_text(program: str = "python run.py") -> str:
    """All that a user may write on the command line, as plain text.

    Args:
        program: How the command is called.
    """
    known = list(keys(RunConfig).values())
    groups = dict.fromkeys(map(_group, known))
    return "\n\n".join([whole_usage(program), *(_section(group, known) for group in groups)]) + "\n"


def help_on(topic: str) -> str | None:
    """What there is to say of one key, one group of keys, or one preset; None where it is none of them.

    Args:
        topic: Its name, as ``agents.count``, ``agents`` or ``gradinversion_paper``; what stands behind an equals sign
            does not count, but for ``preset=NAME``.
    """
    name, _, value = topic.partition("=")
    if name == "preset" and value:
        name = value
    if name in preset_names():
        return preset_text(name)
    known = keys(RunConfig)
    if name in known:
        return _whole_entry(known[name])
    if any(_group(key) == name for key in known.values()):
        return _section(name, list(known.values())) + "\n"
    return None


def strange_topic(topic: str) -> str:
    """What to say of a topic that there is no help on, with what was probably meant."""
    return unknown(topic.partition("=")[0], keys(RunConfig))


def _section(group: str, known: Sequence[Key]) -> str:
    members = [key for key in known if _group(key) == group]
    heading = f"{group}: {_summary(members[0].owner)}" if group else _summary(RunConfig)
    return "\n".join([heading, *(_entry(key) for key in members)])


def _whole_entry(key: Key) -> str:
    return f"{_entry(key)}\n{columns('', f'Give {wanted(key.kind)}.', COLUMN)}\n"


def meaning(key: Key) -> str:
    """What a key means: the string below its field, in the dataclass that declares it; empty when there is none."""
    leaf = key.name.rpartition(".")[2]
    for owner in key.owner.__mro__:
        if leaf in inspect.get_annotations(owner):
            return _field_docs(owner).get(leaf, "")
    return ""


@cache
def _field_docs(owner: type) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for line, below in pairwise(definition.body):
        match line, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = _plain_words(text)
    return found


def _entry(key: Key) -> str:
    return columns(f"{key.name}={format_value(key.default)}", meaning(key), COLUMN)


def _group(key: Key) -> str:
    return key.name.rpartition(".")[0]


def _summary(owner: type) -> str:
    return _plain_words(inspect.getdoc(owner) or "").partition(". ")[0].partition(";")[0].removesuffix(".") + "."


def _plain_words(text: str) -> str:
    return " ".join(text.replace("`", "").split())

"""The text behind ``--help all`` and ``--help KEY``: every key with its default and meaning; torch is not imported."""

from __future__ import annotations

from collections.abc import Sequence

from .catalogue import Entry, catalogue
from .keys import format_value, unknown, wanted
from .usage import COLUMN, columns, preset_names, preset_text, whole_usage


def help_text(program: str = "python run.py") -> str:
    """All that a user may write on the command line, as plain text.

    Args:
        program: How the command is called.
    """
    known = list(catalogue().values())
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
    known = catalogue()
    if name in known:
        return _whole_entry(known[name])
    if any(_group(key) == name for key in known.values()):
        return _section(name, list(known.values())) + "\n"
    return None


def strange_topic(topic: str) -> str:
    """What to say of a topic that there is no help on, with what was probably meant."""
    known = catalogue()
    groups = filter(None, map(_group, known.values()))
    return unknown(topic.partition("=")[0], dict.fromkeys([*known, *groups, *preset_names()]))


def _section(group: str, known: Sequence[Entry]) -> str:
    members = [key for key in known if _group(key) == group]
    heading = f"{group}: {_summary(members[0])}" if group else _summary(members[0])
    return "\n".join([heading, *(_entry(key) for key in members)])


def _whole_entry(key: Entry) -> str:
    return f"{_entry(key)}\n{columns('', f'Give {wanted(key.kind)}.', COLUMN)}\n"


def _entry(key: Entry) -> str:
    return columns(f"{key.name}={format_value(key.default)}", _plain_words(key.meaning), COLUMN)


def _group(key: Entry) -> str:
    return key.name.rpartition(".")[0]


def _summary(member: Entry) -> str:
    return _plain_words(member.summary).partition(". ")[0].partition(";")[0].removesuffix(".") + "."


def _plain_words(text: str) -> str:
    return " ".join(text.replace("`", "").split())

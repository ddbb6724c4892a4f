"""The ``key=value`` words of a command line, and what can be said of them before any component is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .catalogue import catalogue
from .keys import convert, format_value, unknown, wanted
from .offered import strange_word

_SHORT = {"private": "private.images"}
"""A group of keys that a word names alone, and the key that is meant."""


def split_words(words: Sequence[str], problems: list[str]) -> Iterator[tuple[str, str]]:
    """Key and value of each word; what is no such word is added to the problems."""
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name.strip():
            yield _SHORT.get(name.strip(), name.strip()), value.strip()
        else:
            problems.append(f"{word!r} is not a setting: write key=value, for example agents.count=4.")


def of_wrong_type(name: str, kind: Any, value: Any) -> str:
    """What to say of a value that a key cannot have."""
    return f"{name}={format_value(value)}: give {wanted(kind)}."


def slips(words: Sequence[str]) -> list[str]:
    """Words that are no settings, unknown keys, values of the wrong type and words that a key does not offer, one
    sentence each; a later word overrides an earlier one of the same key, which is not looked at.

    Whether values are in range, and go together, each component says when it is loaded, which is once these are mended.
    """
    known, found = catalogue(), list[str]()
    for name, value in dict(split_words(words, found)).items():
        if name not in known:
            found.append(unknown(name, known))
            continue
        try:
            strange = strange_word(name, convert(known[name].kind, value))
        except ValueError:
            strange = of_wrong_type(name, known[name].kind, value)
        if strange:
            found.append(strange)
    return found

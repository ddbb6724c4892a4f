"""The words of a command line before anything is loaded: the verb, and slips that each have their hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from ..refusal import ConfigError
from ..settings.catalogue import catalogue
from ..settings.usage import VERBS

_SINGLE, _GRID = ("attack", "capture"), ("sweep.", "budget=")
_UPDATE_FILES = (".safetensors", ".pt", ".pth")


def split_verb(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb, ``attack`` where none is given, and the settings behind it.

    Raises:
        ConfigError: Words that are no settings, each with what was probably meant; all of them.
    """
    found = list(_slips(words))
    if found:
        raise ConfigError(found)
    if not words or "=" in words[0]:
        return "attack", list(words)
    if words[0] not in VERBS:
        raise ConfigError([_no_verb(words[0])])
    return words[0], list(words[1:])


def of_another_verb(verb: str, words: Sequence[str]) -> list[str]:
    """Settings of a grid that a verb would not look at, one sentence each: their user has probably left `audit` out."""
    if verb not in _SINGLE:
        return []
    return [f"{word} is for a grid: write audit {word}, or leave it out." for word in words if word.startswith(_GRID)]


def _slips(words: Sequence[str]) -> Iterator[str]:
    """Settings with spaces around their equals sign, and options as other programs have them."""
    place = 0
    while place < len(words):
        used = _apart(words[place : place + 3])
        if used > 1:
            given = words[place : place + used]
            yield f"{' '.join(given)!r} has spaces around its equals sign: write {''.join(given).lstrip('-')}."
        elif words[place].startswith("-"):
            yield _option(words[place], words[place + 1 : place + 2])
        place += used


def _apart(words: Sequence[str]) -> int:
    """How many of the words at the beginning are one setting with spaces in it; 1 where none is."""
    match list(words):
        case [name, "=", *value] if "=" not in name:
            return 2 + len(value)
        case [name, value, *_] if "=" not in name and value.startswith("="):
            return 2
        case [name, value, *_] if name.endswith("=") and name.count("=") == 1 and _is_value(value):
            return 2
    return 1


def _is_value(word: str) -> bool:
    return "=" not in word and not word.startswith("-")


def _option(word: str, following: Sequence[str]) -> str:
    name, equals, value = word.lstrip("-").replace("-", "_").partition("=")
    if not equals and following and _is_value(following[0]):
        value = following[0]
    known = catalogue()
    whole = [] if name in known else [key for key in known if key.endswith(f".{name}")]
    keys = whole or [name or "key"]
    written = " or ".join(f"{key}={value or '…'}" for key in keys)
    return (
        f"{word} is not an option: settings are plain words, {written}; of options there are --help, --version and "
        "--completion."
    )


def _no_verb(word: str) -> str:
    if word.endswith(_UPDATE_FILES):
        return f"{word!r} is not a verb: to attack a captured update give update={word}."
    near = difflib.get_close_matches(word, VERBS, n=1)
    advice = f"did you mean {near[0]}? Give" if near else "give"
    return f"{word!r} is not a verb: {advice} one of {', '.join(VERBS)}, settings as key=value, or --help."

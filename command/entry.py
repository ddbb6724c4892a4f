"""From the words of a command line to its exit status."""

from __future__ import annotations

import sys

from .. import __version__
from ..refusal import ConfigError, Refusal
from ..settings.usage import first_screen
from .program import interrupted, left_behind, program
from .words import split_verb

_HELP = {"--help", "-h", "help"}


def run(words: list[str]) -> int:
    """Carry out one command; the exit status: 0 done, 2 refused with a sentence, 130 interrupted."""
    try:
        if "--version" in words:
            print(f"gradinversion {__version__}")
            return 0
        if _HELP & set(words):
            print(_help([word for word in words if word not in _HELP]), end="")
            return 0
        if words[:1] == ["--completion"]:
            print(_completion(words[1:]), end="")
            return 0
        verb, settings = split_verb(words)
    except Refusal as error:
        return _refused(error)
    return _carry_out(verb, settings)


def _help(topics: list[str]) -> str:
    if not topics or topics[0] in ("attack", "audit", "capture", "watch", "stop", "report"):
        return first_screen(program())
    # With every key comes every component that declares one.
    from ..settings.help import help_on, help_text, strange_topic

    if topics == ["all"]:
        return help_text(program())
    found = {topic: help_on(topic) for topic in topics}
    strange = [strange_topic(topic) for topic, text in found.items() if text is None]
    if strange:
        raise ConfigError(strange)
    return "\n".join(text for text in found.values() if text)


def _completion(shells: list[str]) -> str:
    from .completion import completion

    return completion(shells[0] if shells else "")


def _carry_out(verb: str, words: list[str]) -> int:
    """A verb with its settings; from here on the whole package is loaded."""
    try:
        from rich.console import Console

        from ..cluster import DetachedError
        from ..settings.own_code import require_code_of_preset
        from ..settings.run import load_config
        from .verbs import VERBS
    except KeyboardInterrupt:
        print("Interrupted before anything was begun.", file=sys.stderr)
        return 130
    # A path may hold what rich would take for the name of an emoji.
    console = Console(emoji=False)
    try:
        config = load_config(words)
        require_code_of_preset(config, words)
        return VERBS[verb](config, console)
    except Refusal as error:
        return _refused(error)
    except DetachedError:
        _tell(left_behind(words))
        return 130
    except KeyboardInterrupt:
        _tell(interrupted(verb, words))
        return 130


def _refused(error: Refusal) -> int:
    _tell(str(error), style="red")
    return 2


def _tell(text: str, style: str | None = None) -> None:
    from rich.console import Console

    errors = Console(stderr=True, emoji=False)
    errors.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

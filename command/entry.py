"""From the words of a command line to its exit status."""

from __future__ import annotations

import sys
from contextlib import ExitStack

from ..forking import fork_server
from ..refusal import ConfigError, Refusal
from ..settings.usage import first_screen
from ..settings.words import slips
from .named_cluster import cluster_is_named
from .program import given_out, interrupted, left_behind, program
from .signals import Signalled, ending_in_order
from .words import of_another_verb, split_verb

REFUSED, LOST = 2, 3
_WITH_WORKERS = {"attack", "audit"}
_HELP = {"--help", "-h", "help"}


def run(words: list[str]) -> int:
    """Carry out one command; the exit status.

    0 done; 2 refused with a sentence; 3 the machine or the cluster gave out, and the printed command goes on; 4 the
    verdict is one that `fail_on` names; 130, 143 and 129 interrupted, by Ctrl-C, SIGTERM and SIGHUP.
    """
    try:
        if "--version" in words:
            from .. import __version__  # which is looked up

            print(f"gradinversion {__version__}")
            return 0
        if _HELP & set(words):
            print(_help([word for word in words if word not in _HELP]), end="")
            return 0
        if words[:1] == ["--completion"]:
            print(_completion(words[1:]), end="")
            return 0
        verb, settings = split_verb(words)
        # Before the seconds in which the package is loaded.
        if found := slips(settings) or of_another_verb(verb, settings):
            raise ConfigError(found)
    except Refusal as error:
        return _refused(error)
    with ending_in_order() as signalled, ExitStack() as stack:
        return _carry_out(verb, settings, signalled, stack)


def _help(topics: list[str]) -> str:
    if not topics or topics[0] in ("attack", "audit", "capture", "watch", "stop", "report"):
        return first_screen(program())
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


def _carry_out(verb: str, words: list[str], signalled: Signalled, stack: ExitStack) -> int:
    """A verb with its settings; from here on the whole package is loaded."""
    try:
        if verb in _WITH_WORKERS and not cluster_is_named():
            # Before Ray is loaded: it is copied from this process, and a run on this machine has its workers from it.
            stack.enter_context(fork_server())
        from ..cluster import DetachedError, LostError, give_back_what_is_freed
        from ..settings.own_code import require_code_of_preset
        from ..settings.run import load_config
        from .lasting_console import LastingConsole
        from .verbs import VERBS

        give_back_what_is_freed()
    except KeyboardInterrupt:
        print("Interrupted before anything was begun.", file=sys.stderr)
        return signalled.status
    # A path may hold what rich would take for the name of an emoji.
    console = LastingConsole(emoji=False)
    try:
        config = load_config(words)
        require_code_of_preset(config, words)
        return VERBS[verb](config, console)
    except LostError as error:
        _tell(str(error), style="red")
        _tell(given_out(verb, words))
        return LOST
    except Refusal as error:
        return _refused(error)
    except DetachedError:
        _tell(left_behind(words))
        return signalled.status
    except KeyboardInterrupt:
        _tell(interrupted(verb, words))
        return signalled.status


def _refused(error: Refusal) -> int:
    _tell(str(error), style="red")
    return REFUSED


def _tell(text: str, style: str | None = None) -> None:
    from .lasting_console import LastingConsole

    errors = LastingConsole(stderr=True, emoji=False)
    errors.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

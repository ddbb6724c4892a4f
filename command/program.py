"""How this command is called, so that what it advises can be typed as it stands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def program() -> str:
    """``gradinversion`` where that was called, else ``python run.py``, with the path that was given."""
    called = Path(sys.argv[0])
    return f"python {shlex.quote(str(called))}" if called.name == "run.py" else "gradinversion"


def line(*words: str) -> str:
    """A command of this program, each word quoted where a shell would take it apart."""
    return " ".join([program(), *map(shlex.quote, words)])


def left_behind(words: Sequence[str]) -> str:
    """What to say to whoever looked on at a run that goes on."""
    out = next((word for word in reversed(words) if word.startswith("out=")), "out=out")
    return (
        "The run goes on without this view.\n"
        f"  look on again:  {line('watch', out)}\n"
        f"  end it:         {line('stop', out)}"
    )


def interrupted(verb: str, words: Sequence[str]) -> str:
    """What to say to whoever interrupted a run."""
    return (
        "Interrupted. The rounds finished so far are saved; this continues after the last one:\n"
        f"  {_again(verb, words)}"
    )


def given_out(verb: str, words: Sequence[str]) -> str:
    """What to say, after the reason, to whoever lost the machine of a run or a part of it."""
    return f"The rounds saved so far are not lost; this continues after the last one:\n  {_again(verb, words)}"


def _again(verb: str, words: Sequence[str]) -> str:
    kept = [word for word in words if not word.startswith(("resume=", "restart="))]
    return line(verb, *kept, "resume=true")

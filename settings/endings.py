"""How a command ends other than by finishing: each way has a sentence, an exit status, and the command that goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from rich.console import Console

from ..cluster import DetachedError, LostError
from ..refusal import Refusal

REFUSED = 2
"""Nothing was lost: something given cannot be used, and the sentence says what to do."""
LOST = 3
"""The machine or the cluster gave out; the command that is printed goes on after the last saved round."""
_SIGNALLED = 128
# The terminal or the connection that the command was begun in is gone; the end of a job's time, or of its machine.
_ENDING_SIGNALS = (signal.SIGHUP, signal.SIGTERM)


@dataclass
class Signalled:
    """Which signal asked the command to end; SIGINT where none but the keyboard did."""

    number: int = signal.SIGINT


@contextmanager
def ending_in_order() -> Iterator[Signalled]:
    """Meanwhile SIGTERM and SIGHUP end the command as Ctrl-C does: what was begun is ended, and a sentence is printed.

    A signal that is ignored (``nohup``) stays so. Outside the main thread nothing is changed.
    """
    signalled = Signalled()

    def end(number: int, _: FrameType | None) -> None:
        # Ray turns it into another KeyboardInterrupt on its way, so the number is kept here.
        signalled.number = number
        raise KeyboardInterrupt

    with contextlib.ExitStack() as stack:
        for number in _ENDING_SIGNALS:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                # Only the main thread may; a library's thread leaves signals to it.
                with contextlib.suppress(ValueError):
                    signal.signal(number, end)
                    stack.callback(signal.signal, number, before)
        yield signalled


class LastingConsole(Console):
    """Goes on where nobody reads any more (``| head``): the attack is worth more than its lines."""

    def on_broken_pipe(self) -> None:
        """Called by rich; says once, on the other stream, that what follows is not shown."""
        self.quiet = True
        # What is still in the stream's buffer must not fail at the end of the process.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)
        if not self.stderr:
            with contextlib.suppress(OSError, ValueError):
                print(
                    "Nobody reads the output any more; the command goes on, and its report is written.", file=sys.stderr
                )


def tell(error: BaseException, signalled: Signalled, verb: str, words: list[str], console: Console) -> int:
    """Print how the command ended, and return its exit status.

    Args:
        error: A `Refusal` or a `KeyboardInterrupt`.
        signalled: Of `ending_in_order`.
        verb: Of the command.
        words: Its ``key=value`` words.
        console: For errors.
    """
    if isinstance(error, KeyboardInterrupt):
        text = _left_behind(words) if isinstance(error, DetachedError) else _interrupted(verb, words)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return _SIGNALLED + signalled.number
    assert isinstance(error, Refusal)
    console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
    if not isinstance(error, LostError):
        return REFUSED
    console.print(
        f"What was saved is not lost; this continues after the last saved round:\n  {_again(verb, words)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return LOST


def _left_behind(words: list[str]) -> str:
    out = next((word for word in reversed(words) if word.startswith("out=")), "out=out")
    return (
        "The run goes on without this view.\n"
        f"  look on again:  python run.py watch {out}\n"
        f"  end it:         python run.py stop {out}"
    )


def _interrupted(verb: str, words: list[str]) -> str:
    return (
        "Interrupted. The rounds finished so far are saved; this continues after the last one:\n"
        f"  {_again(verb, words)}"
    )


def _again(verb: str, words: list[str]) -> str:
    kept = [word for word in words if not word.startswith(("resume=", "restart="))]
    return " ".join(["python run.py", verb, *kept, "resume=true"])

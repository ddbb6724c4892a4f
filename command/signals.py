"""Signals that end a command as Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# The terminal or the connection that the command was begun in is gone; the end of a job's time, or of its machine.
_ENDING = (signal.SIGHUP, signal.SIGTERM)
_SIGNALLED = 128


@dataclass
class Signalled:
    """Which signal asked the command to end; SIGINT where none but the keyboard did."""

    number: int = signal.SIGINT

    @property
    def status(self) -> int:
        """The exit status, as shells have it."""
        return _SIGNALLED + self.number


@contextmanager
def ending_in_order() -> Iterator[Signalled]:
    """Meanwhile SIGTERM and SIGHUP raise KeyboardInterrupt: what was begun is ended, and a sentence can be printed.

    A signal that is ignored (``nohup``) stays so. Outside the main thread nothing is changed.
    """
    signalled = Signalled()

    def end(number: int, _: FrameType | None) -> None:
        # Ray turns the error into another KeyboardInterrupt on its way, so the number is kept here.
        signalled.number = number
        raise KeyboardInterrupt

    with contextlib.ExitStack() as stack:
        for number in _ENDING:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                # Only the main thread may; a library's thread leaves signals to it.
                with contextlib.suppress(ValueError):
                    signal.signal(number, end)
                    stack.callback(signal.signal, number, before)
        yield signalled

"""A sign of life: a line whenever nothing else was said for a while, so that silence means that something is wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

# Under a quarter of a minute even where the machine has other things to do.
SILENCE_SECONDS = 10.0


class Pulse:
    """Says what is going on after each stretch of silence. Use as a context manager; lines come from another thread.

    Args:
        say: Prints one line.
        describe: What is going on, in one line; empty where nothing is to be said.
        silence: Seconds without a line after which one is due.
    """

    def __init__(
        self, say: Callable[[str], None], describe: Callable[[], str], silence: float = SILENCE_SECONDS
    ) -> None:
        self._say, self._describe, self._silence = say, describe, silence
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._beat, daemon=True, name="pulse")
        self._heard = time.monotonic()

    def __enter__(self) -> Pulse:
        self.heard()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        # A line that is being printed is not cut in two by those that follow.
        self._thread.join()

    def heard(self) -> None:
        """Something else was said: silence begins now."""
        self._heard = time.monotonic()

    def _beat(self) -> None:
        while not self._ended.wait(max(0.0, self._heard + self._silence - time.monotonic())):
            if time.monotonic() - self._heard < self._silence:
                continue
            self.heard()
            text = self._describe()
            if text:
                self._say(text)


class Activity:
    """What a command is at between its attacks, told again and again while it lasts. Use as a context manager.

    Args:
        say: Prints one line.
        silence: As of `Pulse`.
    """

    def __init__(self, say: Callable[[str], None], silence: float = SILENCE_SECONDS) -> None:
        self._doing, self._began = "", time.monotonic()
        self._pulse = Pulse(say, self._words, silence)

    def __enter__(self) -> Activity:
        self._pulse.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pulse.__exit__(kind, error, trace)

    def begins(self, doing: str) -> None:
        """What begins now, in a few words; empty where something else tells how it goes."""
        self._doing, self._began = doing, time.monotonic()
        self._pulse.heard()

    def _words(self) -> str:
        return f"{self._doing} ({clock_time(time.monotonic() - self._began)})" if self._doing else ""


def clock_time(seconds: float) -> str:
    """Hours, minutes and seconds: ``0:02:05``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"

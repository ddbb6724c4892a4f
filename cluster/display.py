"""Where a person watches: a live screen in a terminal; elsewhere lines, and a sign of life in long silences."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live

from ..foreign_text import safe_lines
from .pulse import Pulse


class Display:
    """A console with what goes on. Use as a context manager.

    Args:
        console: A terminal, or whatever takes lines.
        screen: What a terminal shows now; asked again at each refresh, since what shows how long it lasts moves while
            nothing else does.
        alive: What goes on, in one line, where nothing was said for a while; lines only.
        refreshes: Of the screen, a second.
    """

    def __init__(
        self,
        console: Console,
        screen: Callable[[], RenderableType],
        alive: Callable[[], str],
        refreshes: float,
    ) -> None:
        self.console = console
        self.live = Live(get_renderable=screen, console=console, refresh_per_second=refreshes, transient=True)
        self._pulse = Pulse(self._write, alive)

    def __enter__(self) -> Display:
        if self.is_terminal:
            self.live.start()
        else:
            self._pulse.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_terminal:
            self.live.stop()
        else:
            self._pulse.__exit__(kind, error, trace)

    @property
    def is_terminal(self) -> bool:
        """Whether there is a screen, which tells what lines tell elsewhere."""
        return self.console.is_terminal

    def say(self, text: str) -> None:
        """A line, above the screen where there is one; control characters of strangers are shown, not obeyed."""
        self._pulse.heard()
        self._write(text)

    def _write(self, text: str) -> None:
        self.console.print(safe_lines(text), markup=False, highlight=False, soft_wrap=True)

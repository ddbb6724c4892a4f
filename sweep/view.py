"""An audit as a person watches it: a live table in a terminal, one line per finished cell elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..audit.figures import psnr_in_words, share_in_words
from ..cluster import Display, clock_time
from .cell import Progress
from .results import CellResult, State

_STYLES = {State.DONE: "", State.FAILED: "red", State.SKIPPED: "dim", State.RUNNING: "bold", State.WAITING: "dim"}
# Lines that are not rows: heading, two lines above, the last one of the terminal.
_OTHER_LINES = 6
_ORDER = (State.RUNNING, State.FAILED, State.DONE, State.WAITING, State.SKIPPED)


class GridView:
    """Shows the cells of an audit. Use as a context manager.

    Args:
        console: Where.
        titles: Of the cells, by name.
    """

    def __init__(self, console: Console, titles: Mapping[str, str]) -> None:
        self._console, self._titles = console, titles
        self._results: dict[str, CellResult] = {}
        self._running: dict[str, Progress | None] = {}
        self._began = time.monotonic()
        self._display = Display(console, self.screen, self._alive, refreshes=4)

    def __enter__(self) -> GridView:
        self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__(kind, error, trace)
        if self._display.is_terminal and kind is None:
            self._console.print(self._table(list(self._titles)))

    def look(self, running: Mapping[str, Any]) -> None:
        """Take in what the running jobs told."""
        self._running = dict(running)

    def ended(self, name: str, result: CellResult) -> None:
        """Take in the end of a cell."""
        self._results[name] = result
        self._running.pop(name, None)
        if not self._display.is_terminal:
            counted = f"{len(self._results)}/{len(self._titles)}"
            self.say(f"[{counted}] {self._titles[name]}: {_line(result)}")

    def say(self, text: str) -> None:
        """One line above the table."""
        self._display.say(text)

    def _alive(self) -> str:
        """What runs, where no cell has ended for a while."""
        told = [f"{self._titles.get(name, name)}: {_doing(progress)}" for name, progress in dict(self._running).items()]
        elapsed = clock_time(time.monotonic() - self._began)
        return f"audit, {elapsed}, {len(self._results)}/{len(self._titles)} ended; {'; '.join(told) or 'planning'}"

    def screen(self) -> RenderableType:
        """What the terminal shows now."""
        states = [self._state(name) for name in self._titles]
        counts = ", ".join(f"{states.count(state)} {state}" for state in _ORDER if state in states)
        seconds = round(time.monotonic() - self._began)
        head = Text(f"audit: {counts} · {seconds // 60}:{seconds % 60:02}", style="bold")
        room = max(4, self._console.height - _OTHER_LINES)
        names = sorted(self._titles, key=lambda name: _ORDER.index(self._state(name)))[:room]
        parts: list[RenderableType] = [head, self._table([name for name in self._titles if name in names])]
        if len(names) < len(self._titles):
            parts.append(Text(f"and {len(self._titles) - len(names)} more cells", style="italic"))
        return Group(*parts)

    def _state(self, name: str) -> State:
        if name in self._results:
            return self._results[name].state
        return State.RUNNING if name in self._running else State.WAITING

    def _table(self, names: Sequence[str]) -> Table:
        table = Table(box=None, pad_edge=False)
        for heading in ("cell", "state", "step", "PSNR", "floor", "SSIM", "IIP", "leaked", "labels", "time"):
            left = heading in ("cell", "state")
            table.add_column(heading, justify="left" if left else "right", no_wrap=not left, overflow="fold")
        for name in names:
            state = self._state(name)
            table.add_row(self._titles[name], *self._columns(name, state), style=_STYLES[state])
        return table

    def _columns(self, name: str, state: State) -> list[str]:
        result, progress = self._results.get(name), self._running.get(name)
        if result is not None:
            share = "–" if result.share is None else f"{result.leaked}/{result.images}"
            similar = "–" if result.ssim is None else f"{result.ssim:.2f}"
            quality = [psnr_in_words(result.psnr), psnr_in_words(result.floor), similar, share_in_words(result.iip)]
            numbers = [*quality, share, share_in_words(result.labels)]
            return [state, str(result.iterations or "–"), *numbers, _seconds(result.seconds)]
        if progress is None:
            return [state, *["–"] * 8]
        step = f"{progress.step}/{progress.steps}" if progress.steps else "–"
        elapsed = _seconds(time.time() - progress.began) if progress.began else "–"
        return [progress.phase, step, *["–"] * 6, elapsed]


def _line(result: CellResult) -> str:
    if result.state is not State.DONE:
        return f"{result.state}: {result.sentence}"
    share = f"{result.leaked} of {result.images} images leaked"
    similar = "" if result.ssim is None else f", SSIM {result.ssim:.2f}"
    similar += "" if result.iip is None else f", {share_in_words(result.iip)} recognised"
    return (
        f"{share}, PSNR {psnr_in_words(result.psnr)} (floor {psnr_in_words(result.floor)}){similar}, "
        f"{_seconds(result.seconds)}"
    )


def _doing(progress: Progress | None) -> str:
    if progress is None:
        return "beginning"
    return f"{progress.phase}, step {progress.step} of {progress.steps}" if progress.steps else progress.phase


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"

"""A run as a person watches it: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from ..agents import Outcome
from ..coordinator import Status

_TERMS = ("gradient", "activation", "total_variation", "batch_norm", "group", "total")
# Agents shown one by one; more are summed up in a line.
_SHOWN_AGENTS = 16


class ProgressView:
    """Shows each `Status` it is called with. Use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._rates: dict[int, float] = {}
        self._last: tuple[float, tuple[int, ...]] | None = None
        self._printed_round = -1
        self._printed_phase = ""
        self._printed_messages = 0

    def __enter__(self) -> ProgressView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, status: Status) -> None:
        """Show where the run is."""
        self._measure(status)
        for message in status.messages[self._printed_messages :]:
            self._console.print(message, markup=False, highlight=False, soft_wrap=True)
        self._printed_messages = max(self._printed_messages, len(status.messages))
        if self._console.is_terminal:
            self._live.update(self._table(status))
        else:
            self._lines(status)

    def _measure(self, status: Status) -> None:
        now = time.monotonic()
        if self._last is not None and status.steps and len(self._last[1]) == len(status.steps):
            elapsed = now - self._last[0]
            for seed, step, before in zip(status.seeds, status.steps, self._last[1], strict=True):
                rate = max(0.0, (step - before) / elapsed) if elapsed > 0 else 0.0
                # Smoothed: one look lasts about half a second, and a round's end stands still.
                self._rates[seed] = 0.8 * self._rates[seed] + 0.2 * rate if seed in self._rates else rate
        if status.steps:
            self._last = (now, status.steps)

    def _time_left(self, status: Status) -> str:
        rates = [rate for rate in self._rates.values() if rate > 0]
        if not rates or not status.steps:
            return "…"
        seconds = int((status.iterations - min(status.steps)) / (sum(rates) / len(rates)))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def _restarts(self, status: Status) -> int:
        return sum(incarnation for _, incarnation, _, _, _ in status.candidates)

    def _table(self, status: Status) -> Table:
        title = (
            f"{status.phase} · round {status.round}/{status.rounds} · {self._restarts(status)} restarts · "
            f"time left {self._time_left(status)}"
        )
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        latest = {seed: (losses, outcome) for seed, _, _, losses, outcome in status.candidates}
        names = [name for name in _TERMS if any(name in losses for losses, _ in latest.values())]
        for heading in ("agent", "step", "", "steps/s", *names, "state"):
            table.add_column(
                heading.replace("_", " "), justify="left" if heading in ("agent", "state", "") else "right"
            )
        steps = status.steps or (0,) * len(status.seeds)
        for seed, step in list(zip(status.seeds, steps, strict=True))[:_SHOWN_AGENTS]:
            losses, outcome = latest.get(seed, ({}, None))
            table.add_row(
                f"seed {seed}",
                str(step),
                ProgressBar(total=status.iterations, completed=step, width=20),
                f"{self._rates.get(seed, 0):.1f}",
                *(f"{losses[name]:.4f}" if name in losses else "–" for name in names),
                "" if outcome in (None, Outcome.RUNNING) else outcome.value,
            )
        if len(status.seeds) > _SHOWN_AGENTS:
            table.caption = f"and {len(status.seeds) - _SHOWN_AGENTS} more agents"
        return table

    def _lines(self, status: Status) -> None:
        if status.phase != self._printed_phase:
            self._printed_phase = status.phase
            self._console.print(f"{status.phase} ({len(status.seeds)} agents)", highlight=False)
        if not status.candidates or status.round <= self._printed_round:
            return
        self._printed_round = status.round
        losses = [losses["gradient"] for _, _, _, losses, _ in status.candidates if "gradient" in losses]
        loss = f"gradient loss {min(losses):.4f}–{max(losses):.4f}, " if losses else ""
        rate = sum(self._rates.values())
        self._console.print(
            f"round {status.round}/{status.rounds}: {loss}{rate:.1f} steps/s, {self._restarts(status)} restarts, "
            f"time left {self._time_left(status)}",
            highlight=False,
            soft_wrap=True,
        )

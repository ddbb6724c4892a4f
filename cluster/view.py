"""A run as a person watches it: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..agents import Outcome
from ..coordinator import EventKind, SeedStatus, Status
from ..coordinator.event_log import left_out_line
from ..coordinator.phase import Phase
from .clock import Clock
from .display import Display

# What a column is called, and which loss terms give way first when the terminal is narrow.
_HEADINGS = {
    "gradient": "gradient",
    "activation": "activation",
    "total_variation": "TV",
    "batch_norm": "BN",
    "group": "group",
    "total": "total",
}
_GIVE_WAY = ("group", "batch_norm", "total_variation", "activation")
_STATES = {
    Outcome.RUNNING: "",
    Outcome.FINISHED: "done",
    Outcome.NOT_FINITE: "not finite",
    Outcome.DIVERGED: "diverged",
    Outcome.DROPPED: "dropped",
    Outcome.INTERRUPTED: "interrupted",
    Outcome.ALL_SEEDS_FAILED: "failed",
}
# Agents shown one by one; more are summed up in a line.
_SHOWN_AGENTS = 16
# Lines of the past that someone who comes to a running attack gets to read.
_SHOWN_PAST = 10
# Until the first round begins nobody has been placed yet: an agent without a process is starting, not lost.
_BEGINNING = frozenset({Phase.STARTING, Phase.PREPARING, Phase.WAITING})
# Of an event, as `Event.key`; None for those that are no longer listed.
_Key = tuple[EventKind, str] | None


class ProgressView:
    """Shows each `Status` it is called with. Use as a context manager.

    A run may be looked at from its middle, and its status may go back when its coordinator starts again.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._status: Status | None = None
        self._clock = Clock()
        self._display = Display(console or Console(), self._screen, self._alive, refreshes=2)
        self._messages: _Messages | None = None
        self._printed_round = -1
        self._printed_phase = ""

    def __enter__(self) -> ProgressView:
        self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__(kind, error, trace)
        if self._messages is not None:
            self._print(self._messages.last())

    def __call__(self, status: Status) -> None:
        """Show where the run is."""
        self._clock.look(status)
        self._status = status
        if self._messages is None:
            self._messages = _Messages()
            self._print(self._messages.first(_lines_by_event(status)))
        else:
            self._print(self._messages.news(_lines_by_event(status)))
        if not self._display.is_terminal:
            self._lines(status)

    def _print(self, lines: list[str]) -> None:
        for line in lines:
            self._display.say(line)

    def _alive(self) -> str:
        """What goes on, where nothing else was told for a while."""
        status = self._status
        if status is None:
            return f"{Phase.STARTING} ({self._clock.lasted()})"
        facts = [self._clock.lasted()]
        if status.phase is Phase.OPTIMISING and status.seeds:
            facts.insert(0, f"step {_span([str(step) for step in sorted(seed.step for seed in status.seeds)])}")
            facts[0] += f" of {status.iterations}"
        return f"{status.doing} ({', '.join(facts)})"

    def _screen(self) -> RenderableType:
        status = self._status
        if status is None:
            return Text(f"{Phase.STARTING} · {self._clock.lasted()}", style="bold")
        facts = [f"round {status.round}/{status.rounds}", f"time left {self._clock.left()}"]
        facts.append(f"at this for {self._clock.lasted()}")
        if status.saved_round >= 0:
            facts.append(f"saved up to round {status.saved_round + 1}")
        absent = _absent(status)
        if absent:
            facts.append(f"{absent} of {len(status.seeds)} absent")
        parts: list[RenderableType] = [Text(status.doing, style="bold"), Text(" · ".join(facts)), self._table(status)]
        shown = _shown(status)
        if len(shown) < len(status.seeds):
            rest = replace(status, seeds=tuple(seed for seed in status.seeds if seed not in shown))
            parts.append(Text(self._rest(rest), style="italic"))
        return Group(*parts)

    def _table(self, status: Status) -> Table:
        """The widest of the tables that fits the terminal."""
        shown = _shown(status)
        names = [name for name in _HEADINGS if any(name in seed.losses for seed in shown)]
        variants = [(names, 20, True), (names, 10, True), (names, 10, False)]
        for count in range(1, len(_GIVE_WAY) + 1):
            variants.append(([name for name in names if name not in _GIVE_WAY[:count]], 10, False))
        # Measured in a terminal of any width: in the real one each table would be squeezed until it fits.
        console = self._display.console
        wide = console.options.update(max_width=1000)
        for variant in variants:
            table = self._rows(status, shown, *variant)
            if Measurement.get(console, wide, table).maximum <= console.width:
                return table
        return self._rows(status, shown, [name for name in names if name == "gradient"], 0, False)

    def _rows(self, status: Status, shown: list[SeedStatus], names: list[str], bar: int, long_states: bool) -> Table:
        behind = any(round(seed.behind, 1) for seed in shown)
        headings = ["agent", "step", *([""] if bar else []), "steps/s", *(_HEADINGS[name] for name in names)]
        headings += ["restarts", *(["behind"] if behind else []), "state"]
        table = Table(box=None, pad_edge=False)
        for heading in headings:
            table.add_column(heading, justify="left" if heading in ("agent", "", "state") else "right", no_wrap=True)
        for seed in shown:
            rate = self._clock.rate(seed)
            table.add_row(
                f"seed {seed.seed}",
                str(seed.step),
                *([ProgressBar(total=status.iterations, completed=seed.step, width=bar)] if bar else []),
                f"{rate:.1f}" if rate and seed.present else "–",
                *(_number(seed.losses.get(name)) for name in names),
                str(seed.incarnation + seed.deaths) if seed.incarnation + seed.deaths else "–",
                *([f"{seed.behind:.1f}" if round(seed.behind, 1) else "–"] if behind else []),
                _state(seed, long_states, status.phase),
                style="dim" if not seed.present or seed.outcome is Outcome.DROPPED else None,
            )
        return table

    def _rest(self, status: Status) -> str:
        seeds = status.seeds
        facts = [
            f"and {len(seeds)} more agents at step {_span([str(step) for step in sorted(seed.step for seed in seeds)])}"
        ]
        if losses := _losses(seeds):
            facts.append(f"gradient loss {_span([_number(loss) for loss in losses])}")
        facts.append(f"{sum(self._clock.rate(seed) for seed in seeds if seed.present):.1f} steps/s")
        for name, number in (
            ("restarts", sum(seed.incarnation + seed.deaths for seed in seeds)),
            ("absent", _absent(status)),
            ("dropped", sum(seed.outcome is Outcome.DROPPED for seed in seeds)),
        ):
            if number:
                facts.append(f"{number} {name}")
        return ", ".join(facts)

    def _lines(self, status: Status) -> None:
        seeds = status.seeds
        restarts = sum(seed.incarnation + seed.deaths for seed in seeds)
        missing = _absent(status)
        absent = f"{missing} of {len(seeds)} agents absent" if missing else ""
        if status.doing != self._printed_phase:
            self._printed_phase = status.doing
            # What it waits for has said how many there are.
            whole = status.wait is not None or status.doing != status.phase
            self._print([status.doing if whole else f"{status.doing} ({absent or f'{len(seeds)} agents'})"])
        if status.round <= max(self._printed_round, 0):
            return
        self._printed_round = status.round
        losses = _losses(seeds)
        facts = (
            f"gradient loss {_span([_number(loss) for loss in losses])}" if losses else "",
            f"{sum(self._clock.rate(seed) for seed in seeds if seed.present):.1f} steps/s",
            f"{restarts} restart{'s' if restarts > 1 else ''}" if restarts else "",
            absent,
            f"saved up to round {status.saved_round + 1}" if 0 <= status.saved_round < status.round - 2 else "",
            f"time left {self._clock.left()}",
        )
        self._print([f"round {status.round}/{status.rounds}: {', '.join(fact for fact in facts if fact)}"])


def _lines_by_event(status: Status) -> dict[_Key, str]:
    """A line for each event, by what stays the same of it while it goes on."""
    left_out: dict[_Key, str] = {None: left_out_line(status.events_left_out)} if status.events_left_out else {}
    return left_out | {event.key: event.message for event in status.events}


class _Messages:
    """Which lines to print, so that an event that goes on and on is told again only now and then."""

    def __init__(self) -> None:
        self._known: dict[_Key, str] = {}
        self._changes: dict[_Key, int] = {}
        self._unprinted: dict[_Key, str] = {}

    def first(self, lines: dict[_Key, str]) -> list[str]:
        """The last few of what was told before anyone looked."""
        self._known, self._changes = lines, dict.fromkeys(lines, 0)
        earlier = len(lines) - _SHOWN_PAST
        return [*([f"… and {earlier} earlier"] if earlier > 0 else []), *list(lines.values())[-_SHOWN_PAST:]]

    def news(self, lines: dict[_Key, str]) -> list[str]:
        """New events, and known ones that changed for the 1st, 2nd, 4th, 8th … time."""
        found = []
        for event, line in lines.items():
            if self._known.get(event) == line:
                continue
            changes = self._changes[event] = self._changes.get(event, -1) + 1
            # 0 is a new event; a power of two shares no bit with the number before it.
            if changes & (changes - 1):
                self._unprinted[event] = line
            else:
                self._unprinted.pop(event, None)
                found.append(line)
        self._known = lines
        return found

    def last(self) -> list[str]:
        """How the events stand that changed since they were printed."""
        lines = list(self._unprinted.values())
        self._unprinted.clear()
        return lines


def _shown(status: Status) -> list[SeedStatus]:
    """The seeds with a row of their own, in their order: those that need attention are among them."""

    def is_well(seed: SeedStatus) -> bool:
        return not _state(seed, False, status.phase) or seed.outcome is Outcome.FINISHED

    chosen = sorted(status.seeds, key=is_well)[:_SHOWN_AGENTS]
    return [seed for seed in status.seeds if seed in chosen]


def _absent(status: Status) -> int:
    return sum(_state(seed, False, status.phase) == "absent" for seed in status.seeds)


def _state(seed: SeedStatus, long: bool, phase: Phase) -> str:
    if not seed.present and seed.outcome is not Outcome.DROPPED:
        if phase in _BEGINNING:
            return "starting"
        return "absent, waiting for a node" if long else "absent"
    return _STATES[seed.outcome]


def _losses(seeds: tuple[SeedStatus, ...] | list[SeedStatus]) -> list[float]:
    """Gradient losses of the seeds that are still in the run, rising."""
    return sorted(
        seed.losses["gradient"] for seed in seeds if "gradient" in seed.losses and seed.outcome is not Outcome.DROPPED
    )


def _span(sorted_texts: list[str]) -> str:
    first, last = sorted_texts[0], sorted_texts[-1]
    return first if first == last else f"{first}–{last}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.3g}"

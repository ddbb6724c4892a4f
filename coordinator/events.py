"""The structured log of a run: what happened, told once however often it happened."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, TextIO

from ..foreign_text import safe


class EventKind(StrEnum):
    """What happened. Tools may filter by the values, so they stay as they are."""

    SEED_DIVERGED = "seed_diverged"
    SEED_DROPPED = "seed_dropped"
    SEED_JOINED = "seed_joined"
    AGENT_LOST = "agent_lost"
    AGENT_GIVEN_UP = "agent_given_up"
    AGENT_BACK = "agent_back"
    CHECKPOINT_FAILED = "checkpoint_failed"
    CHECKPOINT_SAVED_AGAIN = "checkpoint_saved_again"
    CHECKPOINT_REFUSED = "checkpoint_refused"
    CONSENSUS_LEFT_OUT = "consensus_left_out"
    PAUSED = "paused"
    RESUMED = "resumed"
    COORDINATOR_RESTARTED = "coordinator_restarted"
    FAILED = "failed"
    NODE_DRAINING = "node_draining"
    NOTE = "note"
    """A plain fact. Told again, it is still one fact and is not counted."""


MEANINGS = {
    EventKind.SEED_DIVERGED: "a seed's loss or candidate failed numerically, and the seed began again",
    EventKind.SEED_DROPPED: "a seed failed more often than agents.restarts allows and is out of the run",
    EventKind.SEED_JOINED: "a seed got its first process after the run had begun",
    EventKind.AGENT_LOST: "the process of a seed is gone",
    EventKind.AGENT_GIVEN_UP: "a lost seed was not back in time, so the others go on without it",
    EventKind.AGENT_BACK: "a lost seed has a process again and continues",
    EventKind.CHECKPOINT_FAILED: "a round could not be saved; the last good checkpoint stays",
    EventKind.CHECKPOINT_SAVED_AGAIN: "saving works again after it had failed",
    EventKind.CHECKPOINT_REFUSED: "a torn or foreign checkpoint was passed over",
    EventKind.CONSENSUS_LEFT_OUT: "a candidate was kept out of a consensus",
    EventKind.PAUSED: "fewer than agents.minimum agents are present, so the run waits",
    EventKind.RESUMED: "enough agents are present again",
    EventKind.COORDINATOR_RESTARTED: "the coordinator, or the whole run, continues from its last checkpoint",
    EventKind.FAILED: "the run ended with an error",
    EventKind.NODE_DRAINING: "a node will be taken away, so its agents leave it",
    EventKind.NOTE: "a fact about the run that a reader of its result should know",
}
"""What each kind means, as the page of events tells it."""


class Level(StrEnum):
    """How grave an event is, from the least grave on."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_LOGGER = logging.getLogger("gradinversion")
# Silent until a process says where its log goes (`log_as_json`).
_LOGGER.addHandler(logging.NullHandler())
_LEVELS = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING, Level.ERROR: logging.ERROR}
# Different events that are kept: enough for a person, and some tens of kilobytes in every checkpoint.
_MOST_EVENTS = 200
# An exception's text may hold a whole traceback.
_LONGEST_TEXT = 500
# A longer list of seeds is cut: nobody reads 200 numbers in a sentence.
_MOST_NAMED = 8
# What stands in a text for the seeds that it happened to, and for its last round.
_SEED, _ROUND = "{seed}", "{round}"


@dataclass(frozen=True)
class Event:
    """One thing that happened, with all its repetitions."""

    time: float
    """Unix time at which it happened first."""
    level: Level
    kind: EventKind
    text: str
    """What a person reads; ``{seed}`` stands for the seeds, ``{round}`` for the last round."""
    seeds: tuple[int, ...] = ()
    """The seeds it happened to, in rising order."""
    round: int | None = None
    """The last round in which it happened."""
    count: int = 1
    """How often it happened; once to each of two seeds is twice."""
    first_round: int | None = None
    """The first round in which it happened."""
    last_time: float = 0.0
    """Unix time at which it happened last."""

    @property
    def key(self) -> tuple[EventKind, str]:
        """What stays the same while the event happens again, to other seeds and in other rounds."""
        return self.kind, self.text

    @property
    def message(self) -> str:
        """The line for people: the seeds listed, and how often if that is more than once each."""
        text = self.text if not self.seeds or _SEED in self.text else f"{_SEED}: {self.text}"
        text = text.replace(_SEED, _name_seeds(self.seeds))
        text = text.replace(_ROUND, "?" if self.round is None else str(self.round))
        facts = [f"{self.count} times"] if self.count > max(1, len(self.seeds)) else []
        if self.round is not None and self.first_round is not None:
            if self.first_round != self.round:
                facts.append(f"rounds {self.first_round} to {self.round}")
            elif _ROUND not in self.text:
                facts.append(f"round {self.round}")
        text = text[:1].upper() + text[1:]
        return f"{text} ({', '.join(facts)})" if facts else text

    def to_plain(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self) | {"seeds": list(self.seeds)}


class EventLog:
    """The events of one run, grouped; of bounded size however long the run and however many its faults.

    One thread writes; any thread may read.

    Args:
        most: Different events that are kept. More push out the least grave that was not heard of for longest.
    """

    def __init__(self, most: int = _MOST_EVENTS) -> None:
        self._most = most
        self._left_out = 0
        self._events: dict[tuple[EventKind, str], Event] = {}
        self._lock = threading.Lock()

    def note(
        self,
        kind: EventKind,
        text: str,
        *,
        seeds: Iterable[int] = (),
        level: Level = Level.INFO,
        round: int | None = None,
    ) -> None:
        """Take down one event; one of the same kind and with the same text is counted up.

        Args:
            kind: What happened.
            text: A sentence or two for people; the past tense, or a colon after the seed, fits one seed and many.
                ``{seed}`` becomes "seed 3" or "seeds 1, 4 and 7", ``{round}`` the last round; without ``{seed}`` the
                seeds come first.
            seeds: Those that it happened to.
            level: How grave it is.
            round: The round in which it happened.
        """
        text, numbers = _told(text), tuple(sorted(set(seeds)))
        now = time.time()
        event = Event(now, level, kind, text, numbers, round, max(1, len(numbers)), round, now)
        with self._lock:
            new = self._add(event)
        if new:
            _LOGGER.log(_LEVELS[level], "%s", event.message, extra={"event": event})

    def events(self) -> tuple[Event, ...]:
        """What is kept, in the order in which each happened first."""
        with self._lock:
            return tuple(self._events.values())

    @property
    def left_out(self) -> int:
        """Different events that there was no more room for."""
        return self._left_out

    def messages(self) -> tuple[str, ...]:
        """The lines for people, in the order in which each event happened first."""
        events, left_out = self.events(), self._left_out
        lines = [event.message for event in events]
        return tuple(dict.fromkeys([left_out_line(left_out), *lines] if left_out else lines))

    def lines(self) -> str:
        """JSON lines, one event each: the file ``events.jsonl``."""
        return "".join(
            json.dumps({"message": event.message} | event.to_plain(), ensure_ascii=False) + "\n"
            for event in self.events()
        )

    def to_plain(self) -> dict[str, Any]:
        """All of it as JSON knows it, for a checkpoint."""
        with self._lock:
            return {"left_out": self._left_out, "events": [event.to_plain() for event in self._events.values()]}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], most: int = _MOST_EVENTS) -> EventLog:
        """The log that `to_plain` gave.

        Raises:
            ValueError: It is not such a log.
        """
        log = cls(most)
        try:
            log._left_out = int(plain["left_out"])
            for row in plain["events"]:
                log._add(_event(row))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The saved events cannot be read ({error!r}).") from None
        return log

    def continue_from(self, earlier: EventLog) -> None:
        """Put the events of an earlier process of the run before those of this one."""
        mine, before = self.events(), earlier.events()
        with self._lock:
            self._events = {event.key: event for event in before}
            self._left_out += earlier.left_out
            for event in mine:
                self._add(event)

    def _add(self, event: Event) -> bool:
        """Whether it is new, not one more of the same."""
        known = self._events.get(event.key)
        if known is not None:
            self._events[event.key] = _together(known, event)
            return False
        self._events[event.key] = event
        if len(self._events) > self._most:
            others = [other for other in self._events if other != event.key]
            del self._events[min(others, key=lambda other: _worth(self._events[other]))]
            self._left_out += 1
        return True


class JsonFormatter(logging.Formatter):
    """Any log record as one JSON line; that of an event has the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        event = getattr(record, "event", None)
        fields: dict[str, Any] = event.to_plain() if isinstance(event, Event) else {"time": record.created}
        fields = {"message": record.getMessage(), "level": record.levelname.lower(), "logger": record.name} | fields
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


def log_as_json(stream: TextIO | None = None) -> None:
    """Have this process write each new event as a JSON line to a stream (None: stderr, a file of Ray's in an actor).

    A second call does nothing.
    """
    if any(isinstance(handler.formatter, JsonFormatter) for handler in _LOGGER.handlers):
        return
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    # The root logger would write each line once more, in its own format.
    _LOGGER.propagate = False


def left_out_line(left_out: int) -> str:
    """What is said of different events that there was no more room for."""
    return f"{left_out} different older events are no longer listed; the coordinator's log has them."


def _event(row: Mapping[str, Any]) -> Event:
    facts = {"kind": EventKind(row["kind"]), "level": Level(row["level"]), "seeds": tuple(map(int, row["seeds"]))}
    return Event(**{**row, **facts, "text": _told(row["text"])})


def _told(text: str) -> str:
    """One line of bounded length, and nothing in it that acts on a terminal: errors quote what strangers wrote."""
    return safe(" ".join(text.split()), _LONGEST_TEXT - 1)


def _together(known: Event, more: Event) -> Event:
    rounds = [number for number in (known.first_round, known.round, more.first_round, more.round) if number is not None]
    return replace(
        known,
        level=max(known.level, more.level, key=_LEVELS.__getitem__),
        seeds=tuple(sorted({*known.seeds, *more.seeds})),
        round=max(rounds, default=None),
        first_round=min(rounds, default=None),
        count=1 if known.kind is EventKind.NOTE else known.count + more.count,
        last_time=max(known.last_time, more.last_time),
    )


def _worth(event: Event) -> tuple[bool, int, float]:
    """What is kept longest: facts about the run, then the gravest, then the latest."""
    return event.kind is EventKind.NOTE, _LEVELS[event.level], event.last_time


def _name_seeds(seeds: tuple[int, ...]) -> str:
    """Such as "seed 3", "seeds 1, 4 and 7", "seeds 0–5 and 9"."""
    if not seeds:
        return "a seed"
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    names = [
        name for run in runs for name in ([f"{run[0]}–{run[-1]}"] if len(run) > 2 else [str(seed) for seed in run])
    ]
    word = "seed" if len(seeds) == 1 else "seeds"
    if len(names) > _MOST_NAMED:
        return f"{word} {', '.join(names[: _MOST_NAMED - 2])} … ({len(seeds)} seeds)"
    listed = ", ".join(names[:-1])
    return f"{word} {f'{listed} and ' if listed else ''}{names[-1]}"

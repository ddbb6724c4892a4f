"""The structured log of a run: what happened, told once however often it happened."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TextIO

from ..foreign_text import safe
from ..storage.schema import misfit
from .events import Event, EventKind, Level

_LOGGER = logging.getLogger("gradinversion")
# Silent until a process says where its log goes (`log_as_json`).
_LOGGER.addHandler(logging.NullHandler())
_LEVELS = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING, Level.ERROR: logging.ERROR}
# Different events that are kept: enough for a person, and some tens of kilobytes in every checkpoint.
_MOST_EVENTS = 200
# An exception's text may hold a whole traceback.
_LONGEST_TEXT = 1000


class EventLog:
    """The events of one run, grouped; of bounded size however long the run and however many its faults.

    Any thread may write and read.

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
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"The saved events cannot be read ({error!r}).") from None
        return log

    def continue_from(self, earlier: EventLog) -> None:
        """Put the events of an earlier process of the run before those of this one."""
        before = earlier.events()
        with self._lock:
            mine = tuple(self._events.values())
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


def log_progress(words: str) -> str:
    """Write what a run is at into the log of this process; it is no event.

    Returns:
        The words as they may be shown.
    """
    told = _told(words)
    _LOGGER.info("%s", told)
    return told


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
    event = Event(**{**row, **facts, "text": _told(str(row["text"]))})
    if wrong := misfit(event, Event, "an event"):
        raise ValueError(wrong)
    return event


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

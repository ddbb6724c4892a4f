"""The structured log of a run: what happened, told once however often it happened."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TextIO

NOTE = "note"
"""Kind of a plain fact about the run. Told again, it is still one fact and is not counted."""

KINDS = {
    "seed_diverged": "a seed's loss or candidate failed numerically, and the seed began again",
    "seed_dropped": "a seed failed more often than agents.restarts allows and is out of the run",
    "seed_joined": "a seed got its first process after the run had begun",
    "agent_lost": "the process of a seed is gone",
    "agent_given_up": "a lost seed was not back in time, so the others go on without it",
    "agent_back": "a lost seed has a process again and continues",
    "checkpoint_failed": "a round could not be saved; the last good checkpoint stays",
    "checkpoint_saved_again": "saving works again after it had failed",
    "checkpoint_refused": "a torn or foreign checkpoint was passed over",
    "consensus_left_out": "a candidate was kept out of a consensus",
    "paused": "fewer than agents.minimum agents are present, so the run waits",
    "resumed": "enough agents are present again",
    "coordinator_restarted": "the coordinator, or the whole run, continues from its last checkpoint",
    "failed": "the run ended with an error",
    "node_draining": "a node will be taken away, so its agents leave it",
    NOTE: "a fact about the run that a reader of its result should know",
}
"""What each kind means. Tools may filter by them, so they stay as they are."""

_LOGGER = logging.getLogger("gradinversion")
# Silent until a process says where its log goes (`log_as_json`).
_LOGGER.addHandler(logging.NullHandler())
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Different events that are kept: enough for a person, and some tens of kilobytes in every checkpoint.
_MOST_EVENTS = 200
# An exception's text may hold a whole traceback.
_LONGEST_TEXT = 500
# A longer list of seeds is cut: nobody reads 200 numbers in a sentence.
_MOST_NAMED = 8
_SEED = re.compile(r"(?:\b[Ss]eeds? )?\{seed\}")
# "seeds 1, 4 and 7", "seeds 0-5", "seeds 0, 2, 4 … (40 seeds)" as `_name_seeds` writes them.
_FACTS = re.compile(r" \((?:\d+ times|rounds? \d+)[^()]*\)$")
_NAMED = re.compile(r"\b[Ss]eeds? \d+(?:(?:, | and |–)\d+)*(?: … \(\d+ seeds\))?")


@dataclass(frozen=True)
class Event:
    """One thing that happened, with all its repetitions."""

    time: float
    """Unix time at which it happened first."""
    level: str
    """info, warning or error."""
    kind: str
    """One of `KINDS`."""
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

    def __post_init__(self) -> None:
        if self.level not in _LEVELS:
            raise ValueError(f"level={self.level!r}: give one of {', '.join(_LEVELS)}.")

    @property
    def message(self) -> str:
        """The line for people: the seeds listed, and how often if that is more than once each."""
        text = self.text if not self.seeds or _SEED.search(self.text) else f"{{seed}}: {self.text}"
        text = _SEED.sub(lambda _: _name_seeds(self.seeds), text)
        text = text.replace("{round}", "?" if self.round is None else str(self.round))
        facts = [f"{self.count} times"] if self.count > max(1, len(self.seeds)) else []
        if self.round is not None and self.first_round is not None:
            if self.first_round != self.round:
                facts.append(f"rounds {self.first_round} to {self.round}")
            elif "{round}" not in self.text:
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
        self._events: dict[tuple[str, str], Event] = {}
        self._lock = threading.Lock()

    def note(
        self, kind: str, text: str, *, seeds: Iterable[int] = (), level: str = "info", round: int | None = None
    ) -> None:
        """Take down one event; one with the same kind and the same text but for the seeds' numbers is counted up.

        Args:
            kind: One of `KINDS`.
            text: A sentence or two for people; the past tense, or a colon after the seed, fits one seed and many.
                ``{seed}`` becomes "seed 3" or "seeds 1, 4 and 7" ("Seed {seed}" and "Seed 3" do the same), ``{round}``
                the last round; without ``{seed}`` the seeds come first.
            seeds: Those that it happened to.
            level: info, warning or error.
            round: The round in which it happened.
        """
        text, numbers = _generic(" ".join(text.split()), tuple(sorted(set(seeds))), round)
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
        if left_out:
            lines.insert(0, f"{left_out} different older events are no longer listed; the coordinator's log has them.")
        return tuple(dict.fromkeys(lines))

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
                log._add(Event(**(row | {"seeds": tuple(int(seed) for seed in row["seeds"])})))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The saved events cannot be read ({error!r}).") from None
        return log

    def continue_from(self, earlier: EventLog) -> None:
        """Put the events of an earlier process of the run before those of this one."""
        mine, before = self.events(), earlier.events()
        with self._lock:
            self._events = {(event.kind, event.text): event for event in before}
            self._left_out += earlier.left_out
            for event in mine:
                self._add(event)

    def _add(self, event: Event) -> bool:
        """Whether it is new, not one more of the same."""
        key = (event.kind, event.text)
        known = self._events.get(key)
        if known is not None:
            self._events[key] = _together(known, event)
            return False
        self._events[key] = event
        if len(self._events) > self._most:
            others = [other for other in self._events if other != key]
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


def stem(message: str) -> str:
    """A line for people without its seeds, rounds and counts: equal for all states of one event."""
    return re.sub(r"\d+", "#", _NAMED.sub("seed", _FACTS.sub("", message))).lower()


def _generic(text: str, seeds: tuple[int, ...], round: int | None) -> tuple[str, tuple[int, ...]]:
    """A text of bounded length with placeholders for the number of its only seed and of its round, and the seeds."""
    named = {int(number) for number in re.findall(r"\b[Ss]eed (\d+)\b", text)}
    if not seeds and len(named) == 1 and "{seed}" not in text:
        seeds = tuple(named)
    if len(seeds) == 1:
        text = re.sub(rf"\b[Ss]eed {seeds[0]}\b", "{seed}", text)
    text = _SEED.sub("{seed}", text)
    if round is not None:
        text = re.sub(rf"\b([Rr]ound) {round}\b", r"\1 {round}", text)
    return (text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"), seeds


def _together(known: Event, more: Event) -> Event:
    rounds = [number for number in (known.first_round, known.round, more.first_round, more.round) if number is not None]
    return replace(
        known,
        level=max(known.level, more.level, key=lambda level: _LEVELS[level]),
        seeds=tuple(sorted({*known.seeds, *more.seeds})),
        round=max(rounds, default=None),
        first_round=min(rounds, default=None),
        count=1 if known.kind == NOTE else known.count + more.count,
        last_time=max(known.last_time, more.last_time),
    )


def _worth(event: Event) -> tuple[bool, int, float]:
    """What is kept longest: facts about the run, then the gravest, then the latest."""
    return event.kind == NOTE, _LEVELS[event.level], event.last_time


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

"""What is told of a run's faults: each once, however often it happened."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradinversion.coordinator.event_log import EventLog, JsonFormatter, log_as_json
from gradinversion.coordinator.events import MEANINGS, Event, EventKind, Level

ROOT = Path(__file__).resolve().parents[3]
DIED = "{seed}: the process died; started again from round {round}"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The package's logger, put back as it was."""
    found = logging.getLogger("gradinversion")
    before = found.handlers[:], found.level, found.propagate
    yield found
    found.handlers[:], found.level, found.propagate = before


def test_the_same_failure_of_many_seeds_is_one_line() -> None:
    log = EventLog()
    for seed in (7, 1, 4):
        log.note(EventKind.AGENT_LOST, DIED, seeds=[seed], level=Level.WARNING, round=12)
    assert log.messages() == ("Seeds 1, 4 and 7: the process died; started again from round 12",)
    (event,) = log.events()
    assert (event.seeds, event.count, event.level) == ((1, 4, 7), 3, "warning")


def test_repetitions_over_rounds_are_counted() -> None:
    log = EventLog()
    for round in (12, 13, 30):
        log.note(EventKind.AGENT_LOST, DIED, seeds=[2], round=round)
    assert log.messages() == ("Seed 2: the process died; started again from round 30 (3 times, rounds 12 to 30)",)


@pytest.mark.parametrize(
    ("text", "seeds", "line"),
    [
        ("{seed} left.", (3,), "Seed 3 left."),
        ("At round {round} {seed} left.", (), "At round ? a seed left."),
        ("the node of {seed} is drained", (3, 4), "The node of seeds 3 and 4 is drained"),
        ("left.", (0, 1, 2, 3, 9), "Seeds 0–3 and 9: left."),
        ("{seed} left.", range(0, 40, 2), "Seeds 0, 2, 4, 6, 8, 10 … (20 seeds) left."),
        ("{seed} left.", (), "A seed left."),
        ("KeyError {'a'}\n  in two lines", (), "KeyError {'a'} in two lines"),
    ],
)
def test_lines_read_well(text: str, seeds: tuple[int, ...], line: str) -> None:
    log = EventLog()
    log.note(EventKind.NOTE, text, seeds=seeds)
    assert log.messages() == (line,)


def test_an_event_is_the_same_in_other_seeds_and_rounds() -> None:
    log = EventLog()
    for seed, round in ((3, 5), (5, 6)):
        log.note(EventKind.CONSENSUS_LEFT_OUT, "{seed} agreed with no other.", seeds=[seed], round=round)
        log.note(EventKind.CHECKPOINT_FAILED, "Round {round} was not saved.", round=round)
    assert log.messages() == (
        "Seeds 3 and 5 agreed with no other. (rounds 5 to 6)",
        "Round 6 was not saved. (2 times, rounds 5 to 6)",
    )


def test_no_number_in_a_text_is_taken_for_a_seed() -> None:
    log = EventLog()
    log.note(EventKind.CHECKPOINT_FAILED, "Seed 3 of round 7 was not saved.", round=7)
    (event,) = log.events()
    assert (event.seeds, event.text) == ((), "Seed 3 of round 7 was not saved.")


def test_other_kinds_and_other_texts_stay_apart_in_the_order_in_which_they_began() -> None:
    log = EventLog()
    log.note(EventKind.PAUSED, "Waiting.")
    log.note(EventKind.AGENT_LOST, "Waiting.")
    log.note(EventKind.AGENT_LOST, "Gone.")
    log.note(EventKind.PAUSED, "Waiting.")
    assert [(event.kind, event.text) for event in log.events()] == [
        (EventKind.PAUSED, "Waiting."),
        (EventKind.AGENT_LOST, "Waiting."),
        (EventKind.AGENT_LOST, "Gone."),
    ]
    assert log.messages() == ("Waiting. (2 times)", "Waiting.", "Gone.")


def test_a_fact_told_again_is_still_one_fact() -> None:
    log = EventLog()
    log.note(EventKind.NOTE, "Labels by the paper's rule.")
    log.note(EventKind.NOTE, "Labels by the paper's rule.")
    assert log.messages() == ("Labels by the paper's rule.",)


def test_the_log_stays_small_over_days_of_faults() -> None:
    log = EventLog(most=5)
    log.note(EventKind.NOTE, "A fact.")
    log.note(EventKind.CHECKPOINT_FAILED, "The disk is full.", level=Level.ERROR)
    for number in range(1000):
        log.note(EventKind.AGENT_LOST, f"Lost process {number}.", level=Level.WARNING, seeds=[number % 3], round=number)
        log.note(EventKind.AGENT_BACK, "{seed} is back.", seeds=[number % 3], round=number)
    messages = log.messages()
    assert len(log.events()) == 5
    assert log.left_out > 900
    assert messages[0].startswith(f"{log.left_out} different older events")
    assert "A fact." in messages
    assert "The disk is full." in messages
    assert any("Lost process 999." in message for message in messages)
    assert len(log.lines().splitlines()) == 5


def test_a_long_text_is_cut() -> None:
    log = EventLog()
    log.note(EventKind.NOTE, "x" * 10_000)
    assert len(log.messages()[0]) == 1000


def test_it_goes_through_json_and_on() -> None:
    log = EventLog(most=3)
    for text in ("One.", "Two.", "Three.", "Four."):
        log.note(EventKind.AGENT_LOST, text, seeds=[1, 2], round=3)
    again = EventLog.from_plain(json.loads(json.dumps(log.to_plain())), most=3)
    assert again.messages() == log.messages()
    assert again.events() == log.events()
    again.note(EventKind.AGENT_LOST, "Four.", seeds=[5], round=9)
    assert again.messages()[-1] == "Seeds 1, 2 and 5: Four. (rounds 3 to 9)"


@pytest.mark.parametrize(
    "plain", [{}, {"left_out": 0, "events": [{"text": "x"}]}, {"left_out": "x", "events": []}, {"left_out": 0}]
)
def test_what_is_no_log_is_refused(plain: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="saved events cannot be read"):
        EventLog.from_plain(plain)


def test_a_restarted_coordinator_tells_the_past_first_and_facts_once() -> None:
    before, now = EventLog(), EventLog()
    before.note(EventKind.NOTE, "A fact.")
    before.note(EventKind.AGENT_LOST, DIED, seeds=[1], round=3)
    now.note(EventKind.NOTE, "Another fact.")
    now.note(EventKind.NOTE, "A fact.")
    now.note(EventKind.AGENT_LOST, DIED, seeds=[2], round=4)
    now.continue_from(before)
    assert now.messages() == (
        "A fact.",
        "Seeds 1 and 2: the process died; started again from round 4 (rounds 3 to 4)",
        "Another fact.",
    )


def test_what_is_noted_while_a_log_is_continued_is_kept() -> None:
    now = EventLog()

    class Earlier(EventLog):
        def events(self) -> tuple[Event, ...]:
            now.note(EventKind.NOTE, "Meanwhile.")  # as another thread may
            return super().events()

    before = Earlier()
    before.note(EventKind.NOTE, "A fact.")
    now.continue_from(before)
    assert now.messages() == ("A fact.", "Meanwhile.")


def test_each_new_event_is_logged_once_as_one_json_line(logger: logging.Logger) -> None:
    logger.handlers.clear()
    stream = io.StringIO()
    log_as_json(stream)
    log_as_json(stream)
    log = EventLog()
    for seed in (1, 2):
        log.note(EventKind.AGENT_LOST, DIED, seeds=[seed], level=Level.WARNING, round=3)
    log.note(EventKind.NOTE, "A fact.")
    logger.info("plain %s", "words")
    rows = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [row["message"] for row in rows] == [
        "Seed 1: the process died; started again from round 3",
        "A fact.",
        "plain words",
    ]
    assert (rows[0]["kind"], rows[0]["seeds"], rows[0]["level"]) == ("agent_lost", [1], "warning")
    assert rows[2]["level"] == "info"


def test_an_exception_is_in_the_line() -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        record = logging.LogRecord("a", logging.ERROR, "", 1, "no", (), (type(error), error, error.__traceback__))
    row = json.loads(JsonFormatter().format(record))
    assert row["level"] == "error"
    assert "KeyError: 'x'" in row["exception"]


@pytest.mark.parametrize("changes", [{"level": "fatal"}, {"kind": "odd"}])
def test_a_saved_event_of_no_known_kind_or_level_is_refused(changes: dict[str, str]) -> None:
    log = EventLog()
    log.note(EventKind.NOTE, "x")
    plain = json.loads(json.dumps(log.to_plain()))
    plain["events"][0] |= changes
    with pytest.raises(ValueError, match="saved events cannot be read"):
        EventLog.from_plain(plain)


def test_the_key_is_the_same_for_all_states_of_an_event_and_no_other() -> None:
    log, keys = EventLog(), set()
    for round in range(40):
        log.note(EventKind.AGENT_LOST, DIED, seeds=[(round * 7) % 30], round=round)
        keys |= {event.key for event in log.events()}
    assert keys == {(EventKind.AGENT_LOST, DIED)}


def test_readers_may_look_while_it_is_written() -> None:
    log, failures, done = EventLog(most=20), [], threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                log.messages()
                json.dumps(log.to_plain())
                log.lines()
        except Exception as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(2000):
        log.note(EventKind.AGENT_LOST, f"Lost {number}.", seeds=[number % 8])
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []


def test_lines_hold_the_documented_fields_and_kinds() -> None:
    log = EventLog()
    log.note(EventKind.PAUSED, "x")
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").partition("## Events")[2]
    fields, kinds = page.split("| kind | meaning |")
    documented = {
        name for row in re.findall(r"^\| (`.*?) \|", fields, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert documented == set(json.loads(log.lines()))
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", kinds, re.MULTILINE)) == MEANINGS
    assert set(json.loads(log.lines())) == {"message", *Event.__dataclass_fields__}


def test_every_kind_has_a_meaning() -> None:
    assert list(MEANINGS) == list(EventKind)

"""Text of strangers, as errors, terminals and pages show it."""

from __future__ import annotations

import pickle
import time

import pytest
from gradinversion.audit.environment import page_environment
from gradinversion.coordinator.event_log import EventLog
from gradinversion.coordinator.events import EventKind
from gradinversion.foreign_text import LONGEST_LINE, safe, safe_lines, without_credentials
from gradinversion.refusal import ConfigError, Refusal
from markupsafe import Markup


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain words, Ünïcödé, 日本語, 👍", "plain words, Ünïcödé, 日本語, 👍"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\rb\x00c\x85\x9b31m", "a\\rb\\x00c\\x85\\x9b31m"),
        ("photo\u202egnp.exe", "photo\\u202egnp.exe"),
        ("\u2066x\u2069\u200b\ufeff", "\\u2066x\\u2069\\u200b\\ufeff"),
        ("two\u2028lines\nmore", "two\\u2028lines\\nmore"),
        ("half \ud800", "half \\ud800"),
        ("tag \U000e0041", "tag \\U000e0041"),
        ("a\u00a0space", "a\u00a0space"),
    ],
)
def test_what_could_act_is_shown_as_its_code(given: str, shown: str) -> None:
    assert safe(given) == shown
    assert safe(shown) == shown


def test_lines_stay_lines_where_they_are_meant() -> None:
    assert safe_lines("one\n  - two\x1b") == "one\n  - two\\x1b"


def test_the_length_is_bounded_and_costs_no_time() -> None:
    began = time.process_time()
    for foreign in (
        "x" * 10**6,
        "\x1b" * 10**6,
        "?key" * 10**6,
        "http://" * 10**6,
        "\n" * 10**6,
        "?a=" + "sig" * 10**6,
    ):
        assert len(safe(foreign)) == LONGEST_LINE + 1
        assert len(safe_lines(foreign)) <= 10_001
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("s3://KEY:SECRET@bucket/run", "s3://***@bucket/run"),
        ("https://user:p@ss@host:80/x?y=1 failed", "https://***@host:80/x?y=1 failed"),
        ("https://h/x?X-Amz-Signature=abc&part=2&X-Amz-Security-Token=q", None),
        ("https://h/x?sig=abc%2F", "https://h/x?sig=***"),
        ("s3:/KEY:SECRET@bucket/run", "s3:/***@bucket/run"),
        ("file:///KEY:SECRET@x", "file:///***@x"),
        ("at line 3:/a@b", "at line 3:/a@b"),
        ("mail me@host, s3://bucket/a@b", "mail me@host, s3://bucket/a@b"),
        ("a=b?token=c", "a=b?token=c"),
    ],
)
def test_credentials_of_urls_are_not_shown(given: str, shown: str | None) -> None:
    found = without_credentials(given)
    assert found == (shown or "https://h/x?X-Amz-Signature=***&part=2&X-Amz-Security-Token=***")
    assert safe(given) == found


def test_every_refusal_is_safe_to_show_and_survives_the_way_between_processes() -> None:
    for error in (Refusal("s3://k:s@b \x1b[31m"), ConfigError(["s3://k:s@b \x1b[31m"])):
        assert str(error) == str(pickle.loads(pickle.dumps(error))) == "s3://***@b \\x1b[31m"


def test_events_are_safe_to_show_also_those_of_a_checkpoint() -> None:
    log = EventLog()
    log.note(EventKind.NOTE, "a \u202e b \x1b[31m")
    assert log.messages() == ("A \\u202e b \\x1b[31m",)
    plain = log.to_plain()
    plain["events"][0]["text"] = "from a file \x07" + 10_000 * "x"
    (message,) = EventLog.from_plain(plain).messages()
    assert message.startswith("From a file \\x07x")
    assert len(message) <= 1000


def test_a_page_shows_names_safely_and_what_it_made_itself_as_it_is() -> None:
    template = page_environment().from_string("{{ name }}|{{ style }}|{{ picture }}|{{ number }}")
    picture = "data:image/png;base64," + "A" * 50_000
    shown = template.render(name="<b>\u202e\x1b", style=Markup("a > b\n"), picture=picture, number=0.5)
    assert shown == f"&lt;b&gt;\\u202e\\x1b|a > b\n|{picture}|0.5"

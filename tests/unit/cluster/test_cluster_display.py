"""A terminal has a screen that is taken away in the end; elsewhere there are lines alone."""

from __future__ import annotations

import io

import pytest
from gradinversion.cluster import Display
from rich.console import Console


def _shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> tuple[str, list[str]]:
    """What was written, and what was looked at: the screen or the words for a silence."""
    monkeypatch.setenv("TERM", "xterm")
    asked, file = list[str](), io.StringIO()

    def screen() -> str:
        asked.append("screen")
        return "the screen"

    def alive() -> str:
        asked.append("alive")
        return "still there"

    console = Console(file=file, force_terminal=terminal, width=80)
    with Display(console, screen, alive, refreshes=4) as display:
        assert display.is_terminal == terminal
        display.say("a line with [brackets] and \x1b[2J of a stranger")
    return file.getvalue(), asked


def test_a_terminal_has_a_screen_and_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written, asked = _shown(monkeypatch, terminal=True)
    assert "the screen" in written
    assert "a line with [brackets]" in written
    assert "\x1b[2J" not in written
    assert "alive" not in asked
    assert written.endswith(("\x1b[2K", "\x1b[?25h"))  # nothing of the screen stays


def test_elsewhere_there_are_lines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    written, _ = _shown(monkeypatch, terminal=False)
    assert written.startswith("a line with [brackets]")
    assert "\x1b" not in written
    assert "the screen" not in written
    assert written.count("\n") == 1


def test_an_error_ends_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal)
        display = Display(console, lambda: "the screen", lambda: "", refreshes=4)
        with pytest.raises(KeyError), display:
            raise KeyError
        assert not display.live.is_started

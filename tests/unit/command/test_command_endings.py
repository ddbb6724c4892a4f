"""Signals, closed pipes and lost machines: an exit status, a sentence, and the command that goes on."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gradinversion.cluster import LostError
from gradinversion.command import entry, verbs
from gradinversion.command.lasting_console import LastingConsole
from gradinversion.command.signals import ending_in_order
from rich.console import Console


def ends_with(monkeypatch: pytest.MonkeyPatch, error: BaseException | int) -> int:
    """The command's status when its verb raises this, or gets this signal."""

    def verb(*_: object) -> int:
        if isinstance(error, int):
            signal.raise_signal(error)
            raise AssertionError("the signal was not heard")
        raise error

    monkeypatch.setitem(verbs.VERBS, "attack", verb)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    return entry.run(["attack", "out=here", "seed=3", "restart=true"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_with_the_words_that_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    handler = signal.signal(number, signal.default_int_handler)
    try:
        assert ends_with(monkeypatch, number) == 128 + number
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, handler)
    printed = capsys.readouterr().err
    assert printed.endswith("  python run.py attack out=here seed=3 resume=true\n")
    assert len(printed.splitlines()) == 2


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with ending_in_order() as signalled:
            signal.raise_signal(signal.SIGHUP)
        assert signalled.number == signal.SIGINT
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_machine_that_gave_out_has_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(monkeypatch, LostError("The machine ran out of memory.")) == entry.LOST == 3
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "The machine ran out of memory."
    assert last == "  python run.py attack out=here seed=3 resume=true"


def test_where_nobody_reads_the_output_the_command_goes_on(tmp_path: Path) -> None:
    """As behind ``| head``: the reader is gone before the second line."""
    code = (
        "from gradinversion.command.lasting_console import LastingConsole\n"
        "console = LastingConsole()\n"
        "for number in range(1000): console.print('x' * 1000)\n"
        "print('of print itself')\n"
        "open('reached', 'w')\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path
    )
    os.close(writer)
    assert done.returncode == 0
    assert (tmp_path / "reached").exists()
    assert done.stderr == "Nobody reads the output any more; the command goes on to its end.\n"


def test_a_console_without_a_file_below_goes_on_too() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    console: Console = LastingConsole(file=Gone(), stderr=True)
    console.print("one")
    console.print("two")

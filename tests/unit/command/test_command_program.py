"""What a command advises can be typed as it stands."""

from __future__ import annotations

import shlex
import sys

import pytest
from gradinversion.command.program import interrupted, left_behind, line, program


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("run.py", "python run.py"),
        ("/opt/my tools/run.py", "python '/opt/my tools/run.py'"),
        ("/usr/local/bin/gradinversion", "gradinversion"),
        ("", "gradinversion"),
    ],
)
def test_the_program_is_called_as_it_was(monkeypatch: pytest.MonkeyPatch, called: str, name: str) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert program() == name


def test_paths_with_spaces_come_back_as_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gradinversion"])
    words = ["out=my runs/a", "client.images=it's", "resume=true", "restart=true"]
    command = interrupted("audit", words).splitlines()[-1]
    assert shlex.split(command) == ["gradinversion", "audit", "out=my runs/a", "client.images=it's", "resume=true"]
    assert shlex.split(left_behind(words).splitlines()[1].partition(":")[2]) == [
        "gradinversion",
        "watch",
        "out=my runs/a",
    ]
    assert shlex.split(line("stop", "out=$HOME")) == ["gradinversion", "stop", "out=$HOME"]

"""JSON whose values would take many times its bytes is refused before they are made; what is written here is read."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from gradinversion.storage.json_file import OWN_ROOM, RoomError, read_json
from gradinversion.storage.safetensors_reader import FormatError

MIB = 2**20


def repeated(part: bytes, size: int = 16 * MIB) -> bytes:
    return b"[" + part * (size // len(part)) + b"0]"


def different(size: int = 16 * MIB) -> bytes:
    return b"{" + b",".join(b'"%x":"%060d"' % (number, number) for number in range(size // 71)) + b"}"


BOMBS: dict[str, bytes | None] = {
    "lists": b"[],",
    "lists of one": b"[0],",
    "dictionaries": b"{},",
    "dictionaries of one": b'{"a":0},',
    "numbers": b"7777,",
    "texts": b'"ab",',
    "texts with colons": b'"::",',
    "names that are all different": None,
    "names with escapes": b'{"\\n\\n\\n":0},',
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_values_that_take_many_times_the_file_are_refused(name: str) -> None:
    with pytest.raises(RoomError, match=r"would take [\d,]+ in memory|different names"):
        read_json(different() if (part := BOMBS[name]) is None else repeated(part))


@pytest.mark.parametrize("name", list(BOMBS))
def test_files_that_are_like_our_own_have_a_bound_too(name: str) -> None:
    size = 48 * MIB
    with pytest.raises(RoomError, match=r"would take [\d,]+ in memory|different names"):
        read_json(different(size) if (part := BOMBS[name]) is None else repeated(part, size), OWN_ROOM)


def test_other_characters_would_have_a_large_file_take_four_times_its_size_as_text() -> None:
    with pytest.raises(FormatError, match="beyond ASCII"):
        read_json(repeated('"\U0001f600 a long text, of which there are few",'.encode(), 8 * MIB))


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"1" * 5_000, b"\xff\xfe", b"\0\0"])
def test_what_is_no_json_is_a_sentence(content: bytes) -> None:
    with pytest.raises(FormatError, match="it is no JSON"):
        read_json(content)


def test_the_history_of_a_long_run_is_read() -> None:
    """Of 32 seeds and 2,000 rounds."""
    terms = ("gradient", "activation", "total_variation", "batch_norm", "group", "l2", "total", "steps_per_second")
    row = {"round": 1999, "seed": 31, "incarnation": 0, "step": 20_000} | dict.fromkeys(terms, 0.12345678901234567)
    content = json.dumps({"history": [row] * 64_000}).encode()
    assert len(content) > 16 * MIB
    assert read_json(content) == {"history": [row] * 64_000}


LIMITED = """
import resource
from gradinversion.storage.json_file import _ROOM, OWN_ROOM, read_json
from gradinversion.storage.safetensors_reader import FormatError
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
def limit(size):
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * size + 200 * 2**20, resource.RLIM_INFINITY))
def read(part, values, size, room):
    limit(size)
    try:
        read_json((b"[" + part * values + b"0]").ljust(size), room)
        return 1
    except FormatError as error:
        assert "would take" in str(error)
        return 0
parts = (b"[],", b'{"a":0},', b'"%a",')
found = [read(part, values, 16 * 2**20, _ROOM) for part in parts for values in (400_000, 1_600_000)]
assert 0 < sum(found) < 6, found
found = [read(b"0.12345,", size // 8 - 9, size, OWN_ROOM) for size in (64 * 2**20, 96 * 2**20)]
assert found == [1, 0], found
"""


def test_the_worst_that_is_read_stays_within_its_bound() -> None:
    """As many values as are just allowed, and blanks to the file's size; or numbers throughout."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""JSON of a stranger: what its values would take in memory is bounded by its bytes, before they are made.

Python's values may take thirty times the bytes that JSON says them in (``[],[],[]``, or names that are all different).
Rows of a history, of which manifests are made, count as three to four times, so they are allowed more (`OWN_ROOM`).
With the text itself, which is there meanwhile, that stays within four times the file and 200 MiB.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from .safetensors_reader import FormatError, wrong

# Below this even the worst is no burden.
_SMALL_BYTES = 4 * 2**20
_MIB = 2**20


@dataclass(frozen=True)
class Room:
    """What values may take: so many times their file's size, and this much more."""

    times: float
    more: int


_ROOM = Room(2.0, 100 * _MIB)
OWN_ROOM = Room(2.7, 200 * _MIB)
"""For files whose like this program writes at any length."""
_MOST_NAMES = 100_000
# What CPython takes at most: of each list; of each dictionary, and each of its entries with a number; of each value of
# a list, with its place; of each text; of each name with an escape, which are not told apart. A text with a colon in it
# counts as a name and its entry, which is more.
_LIST, _DICTIONARY, _ENTRY, _VALUE, _TEXT, _ESCAPED = 72, 136, 76, 44, 60, 250
# No escapes: looking for their ends would take time that grows with the square of the file.
_NAME = re.compile(rb'"([^"\\]*)"\s*:')


class RoomError(FormatError):
    """What a file says would take too much memory; it may be whole all the same."""


def read_json(content: bytes, room: Room = _ROOM) -> Any:
    """The values that a file says.

    Args:
        content: All of it.
        room: What the values may take.

    Raises:
        RoomError: Its values would take more.
        FormatError: It is no JSON.
    """
    text: str | bytes = content
    if len(content) > _SMALL_BYTES:
        _require_room(content, room)
        # Else the file would be in memory twice beside its values, where whoever asked keeps no hold of it.
        text = content.decode("ascii")
    del content
    try:
        return json.loads(text)
    # Absurdly long numbers and other encodings are a ValueError, absurd nesting a RecursionError.
    except (ValueError, RecursionError) as error:
        wrong(f"it is no JSON ({str(error)[:100]})")


def _require_room(content: bytes, room: Room) -> None:
    if not content.isascii():
        wrong(f"it has {len(content):,} bytes, some of them beyond ASCII, and is no file of this program")
    names, dictionaries = content.count(b":"), content.count(b"{")
    texts = max(0, content.count(b'"') // 2 - names)
    # A dictionary has a comma less than names.
    in_lists = max(0, content.count(b",") - names + dictionaries)
    needed = _LIST * content.count(b"[") + _DICTIONARY * dictionaries + _VALUE * in_lists
    needed += _ENTRY * names + _TEXT * texts + _ESCAPED * content.count(b"\\")
    if needed > room.times * len(content) + room.more:
        raise RoomError(f"its {len(content):,} bytes would take {needed:,} in memory")
    different: set[bytes] = set()
    for found in _NAME.finditer(content):
        different.add(found[1])
        if len(different) > _MOST_NAMES:
            raise RoomError(f"it has more than {_MOST_NAMES:,} different names")

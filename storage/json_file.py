"""JSON of a stranger: what its values would take in memory is bounded by its bytes, before they are made.

Python's values may take thirty times the bytes that JSON says them in (``[],[],[]``, or names that are all different).
Rows of a history, of which manifests are made, take about five times, so they are allowed more (`OWN_TIMES`).
"""

from __future__ import annotations

import json
import re
from typing import Any

from .safetensors_reader import FormatError, wrong

# Below this even the worst is no burden.
_SMALL_BYTES = 4 * 2**20
_ALLOWED_BYTES = 100 * 2**20
_TIMES = 2
OWN_TIMES = 6
"""For files whose like this program writes at any length."""
_MOST_NAMES = 100_000
# What CPython takes at most: of each list; of each dictionary, and each of its entries; of each value behind a comma,
# with its place; of each text; of each name with an escape, which are not told apart. A text with a colon in it counts
# as a name and its entry, which is more.
_LIST, _DICTIONARY, _ENTRY, _VALUE, _TEXT, _ESCAPED = 72, 136, 64, 44, 60, 250
# No escapes: looking for their ends would take time that grows with the square of the file.
_NAME = re.compile(rb'"([^"\\]*)"\s*:')


class RoomError(FormatError):
    """What a file says would take too much memory; it may be whole all the same."""


def read_json(content: bytes, times: int = _TIMES) -> Any:
    """The values that a file says.

    Args:
        content: All of it.
        times: What the values may take beside 100 MiB, in sizes of the file.

    Raises:
        RoomError: Its values would take more.
        FormatError: It is no JSON.
    """
    if len(content) > _SMALL_BYTES:
        _require_room(content, times)
    try:
        return json.loads(content)
    # Absurdly long numbers and other encodings are a ValueError, absurd nesting a RecursionError.
    except (ValueError, RecursionError) as error:
        wrong(f"it is no JSON ({str(error)[:100]})")


def _require_room(content: bytes, times: int) -> None:
    if not content.isascii():
        wrong(f"it has {len(content):,} bytes, some of them beyond ASCII, and is no file of this program")
    names = content.count(b":")
    texts = max(0, content.count(b'"') // 2 - names)
    needed = _LIST * content.count(b"[") + _DICTIONARY * content.count(b"{") + _VALUE * content.count(b",")
    needed += _ENTRY * names + _TEXT * texts + _ESCAPED * content.count(b"\\")
    if needed > times * len(content) + _ALLOWED_BYTES:
        raise RoomError(f"its {len(content):,} bytes would take {needed:,} in memory")
    different: set[bytes] = set()
    for found in _NAME.finditer(content):
        different.add(found[1])
        if len(different) > _MOST_NAMES:
            raise RoomError(f"it has more than {_MOST_NAMES:,} different names")

"""JSON of a stranger: what its values would take in memory is bounded by its bytes, before they are made.

Python's values may take thirty times the bytes that JSON says them in (``[],[],[]``, or names that are all different).
Every file of JSON that this package writes is far below what is allowed here.
"""

from __future__ import annotations

import json
import re
from typing import Any

from .safetensors_reader import wrong

# Below this even the worst is no burden.
_SMALL_BYTES = 4 * 2**20
_ALLOWED_BYTES = 100 * 2**20
_MOST_NAMES = 100_000
# What CPython takes at most: of each list; of each dictionary, and each of its entries; of each value behind a comma,
# with its place; of each text; of each name with an escape, which are not told apart. A text with a colon in it counts
# as a name and its entry, which is more.
_LIST, _DICTIONARY, _ENTRY, _VALUE, _TEXT, _ESCAPED = 72, 136, 64, 44, 60, 250
# No escapes: looking for their ends would take time that grows with the square of the file.
_NAME = re.compile(rb'"([^"\\]*)"\s*:')


def read_json(content: bytes) -> Any:
    """The values that a file says.

    Args:
        content: All of it.

    Raises:
        FormatError: It is no JSON, or its values would take more than twice its size and 100 MiB.
    """
    if len(content) > _SMALL_BYTES:
        _require_room(content)
    try:
        return json.loads(content)
    # Absurdly long numbers and other encodings are a ValueError, absurd nesting a RecursionError.
    except (ValueError, RecursionError) as error:
        wrong(f"it is no JSON ({str(error)[:100]})")


def _require_room(content: bytes) -> None:
    if not content.isascii():
        wrong(f"it has {len(content):,} bytes, some of them beyond ASCII, and is no file of this program")
    names = content.count(b":")
    texts = max(0, content.count(b'"') // 2 - names)
    needed = _LIST * content.count(b"[") + _DICTIONARY * content.count(b"{") + _VALUE * content.count(b",")
    needed += _ENTRY * names + _TEXT * texts + _ESCAPED * content.count(b"\\")
    if needed > 2 * len(content) + _ALLOWED_BYTES:
        wrong(f"its {len(content):,} bytes would take {needed:,} in memory")
    different: set[bytes] = set()
    for found in _NAME.finditer(content):
        different.add(found[1])
        if len(different) > _MOST_NAMES:
            wrong(f"it has more than {_MOST_NAMES:,} different names")

"""How files are changed at random: bytes, entries of JSON, and pickles, with lengths made right."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Mutate = Callable[[random.Random, bytes], bytes]
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, float("nan"), float("inf")),
    *("", "x", "\x1b[2J\u202e", "../../etc/passwd", "/dev/zero", "a" * 5_000, [], {}, [[]], {"$tensor": "x"}),
    *({"$float": "x"}, {"$tuple": 3}, {"$tuple": [1]}, ["a", 1], {"a": {"a": {}}}),
)
_ODD_BYTES = (b"\0", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\0\0\0\0\x80", b"[", b"{", b"}", b'"', b"&a ", b"*a", b"!!")


def change_bytes(chance: random.Random, content: bytes) -> bytes:
    """A few places flipped, cut out, repeated, filled with odd values, or the end cut off."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(changed) + 1)
        length = chance.choice((1, 2, 4, 16, 200))
        kind = chance.randrange(6)
        if kind == 0:
            del changed[place : place + length]
        elif kind == 1:
            changed[place:place] = changed[place : place + length]
        elif kind == 2:
            changed[place : place + length] = chance.randbytes(length)
        elif kind == 3:
            odd = chance.choice(_ODD_BYTES)
            changed[place : place + len(odd)] = odd
        elif kind == 4 and chance.random() < 0.3:
            del changed[place:]
        elif place < len(changed):
            changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def change_json(chance: random.Random, content: bytes) -> bytes:
    """A value somewhere in it exchanged for an odd one, an entry taken away, doubled or renamed."""
    tree = json.loads(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            break
        holder, key = chance.choice(places)
        kind = chance.randrange(4)
        if kind == 0 and isinstance(holder, dict):
            holder[chance.choice(("x", "$x", "", "\x1b"))] = holder.pop(key)
        elif kind == 1:
            del holder[key]
        elif kind == 2:
            other, name = chance.choice(places)
            holder[key] = copy.deepcopy(other[name]) if _holds(other, name) else None
        else:
            holder[key] = copy.deepcopy(chance.choice(_ODD_VALUES))
    return json.dumps(tree).encode()


def _holds(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _places(tree: Any) -> Any:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield tree, key
        yield from _places(value)


def change_json_or_bytes(chance: random.Random, content: bytes) -> bytes:
    """As either of them."""
    return chance.choice((change_json, change_json, change_bytes))(chance, content)


def change_safetensors(chance: random.Random, content: bytes) -> bytes:
    """The file as it is, or its header as JSON with the right length again."""
    if chance.random() < 0.4:
        return change_bytes(chance, content)
    (length,) = struct.unpack("<Q", content[:8])
    tree = json.loads(content[8 : 8 + length])
    facts = tree.get("__metadata__", {}).get("gradinversion")
    if facts is not None and chance.random() < 0.5:
        tree["__metadata__"]["gradinversion"] = change_json_or_bytes(chance, facts.encode()).decode(errors="replace")
        header = json.dumps(tree).encode()
    else:
        header = change_json_or_bytes(chance, content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def change_torch_file(chance: random.Random, content: bytes) -> bytes:
    """The file as it is, or one of the entries of its zip, with the right checksum again."""
    if not content.startswith(b"PK") or chance.random() < 0.3:
        return change_bytes(chance, content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, change_bytes(chance, part) if name.endswith("data.pkl") else part)
    return buffer.getvalue()

"""Text that others wrote, made safe to show: in an error, on a terminal, on a page.

Names of files and tensors, facts of an update, reasons of a server: each may hold escape sequences that rewrite a
terminal, characters that turn the direction of reading, passwords, or a megabyte.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST_LINE = 2_000
LONGEST_TEXT = 10_000
"""Characters of several lines together: a list of what is wrong, not a file."""

_HIDDEN = "***"
# What stands before the @ of a URL; of one that was taken for a path, a slash is gone.
_USER = re.compile(r"(\b[a-z][a-z0-9+.\-]{1,30}:/{1,3})[^\s/?#]+@", re.IGNORECASE)
# Signed URLs carry their secret as a parameter.
_SECRET = re.compile(
    r"([?&;][^=&;\s]{0,60}(?:token|secret|signature|sig|passw|pwd|credential|key|auth)[^=&;\s]{0,60}=)[^&;\s'\"]+",
    re.IGNORECASE,
)
# Controls, directions and other invisible marks, halves of pairs, private and unassigned codes, ends of lines.
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def safe(text: object, longest: int = LONGEST_LINE) -> str:
    """One line that is safe to show; what could act is written as its code, such as ``\\x1b``.

    Args:
        text: Anything; its ``str`` is taken.
        longest: Characters of the result, without the mark that it was cut.
    """
    return _escaped(_bounded(str(text), longest), longest)


def safe_lines(text: object, longest: int = LONGEST_TEXT) -> str:
    """As ``safe``, with the ends of lines left where they are."""
    lines = _bounded(str(text), longest).split("\n")
    return _cut("\n".join(_escaped(line, longest) for line in lines), longest)


def without_credentials(text: str) -> str:
    """The text without what stands before the @ of a URL, and without the values of its secret parameters."""
    if ":/" not in text:
        return text
    return _SECRET.sub(rf"\1{_HIDDEN}", _USER.sub(rf"\1{_HIDDEN}@", text))


def _bounded(text: str, longest: int) -> str:
    """Without credentials, and no longer than needs be looked at: cut later, so that no half of a URL is left over."""
    return without_credentials(text[: 2 * longest + 1_000])


def _escaped(line: str, longest: int) -> str:
    return _cut(line if line.isprintable() else "".join(map(_shown, line)), longest)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _UNSAFE:
        return character
    return character.encode("unicode_escape").decode("ascii")


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"

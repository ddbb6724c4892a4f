"""Spans of time as a person writes them in settings: 90s, 10m, 2h."""

from __future__ import annotations

import re

_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smh])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def seconds_of(span: str | None) -> float | None:
    """A span of time in seconds; None where there is none, or none that can be read.

    Args:
        span: A number and s, m or h.
    """
    found = _SPAN.fullmatch(span or "")
    return float(found[1]) * _SECONDS[found[2]] if found else None

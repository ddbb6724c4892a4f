"""A disk that fails, and a clock that moves while somebody waits."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Lets every flush to the disk fail a number of times; what comes back grows with each call."""

    def begin(times: int, code: int = errno.ENOSPC) -> list[int]:
        real, calls = os.fsync, []

        def flush(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) <= times:
                raise OSError(code, os.strerror(code))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", flush)
        return calls

    return begin


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes while somebody sleeps, and only then."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now

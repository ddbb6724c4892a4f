"""Whether a run goes to a cluster, as far as can be said before Ray is loaded."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

_PATIENCE_SECONDS = 1.0


def cluster_is_named() -> bool:
    """Whether ``RAY_ADDRESS`` names one, or ``ray start`` has begun one on this machine (Linux) that answers.

    No more than a guess, for what is made early: the connection itself looks again, with Ray's own means.
    """
    if given := os.environ.get("RAY_ADDRESS"):
        return given != "local"
    folder = os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    # There is no such file, it holds no address, or nobody answers there any more.
    with contextlib.suppress(OSError, ValueError, OverflowError):
        host, _, port = (Path(folder) / "ray" / "ray_current_cluster").read_text().strip().rpartition(":")
        socket.create_connection((host, int(port)), timeout=_PATIENCE_SECONDS).close()
        return True
    return False

"""The process that forks, as whoever wants it sees it: begun early, used by a Ray of our own, ended with its user."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

ADDRESS = "GRADINVERSION_FORK_SERVER"
"""The environment variable that tells workers where the process listens; a user who wants one sets it to ``on``."""
# What agents and coordinators load, but for Ray, which reads the environment while it is loaded.
MODULES = (
    *("gradinversion.agents", "gradinversion.coordinator", "gradinversion.target.preparation"),
    "gradinversion.registration.register",
)
_GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
_PATIENCE_SECONDS = 5.0
_HERE = Path(__file__).parent
_addresses: list[Path] = []


@contextmanager
def fork_server() -> Iterator[None]:
    """Have the process for the time of a ``with``; where there is one already, or none can be, nothing happens.

    It loads while this process goes on, so it is worth to begin it before anything else is imported.
    """
    if _addresses or os.environ.get(ADDRESS) != "on" or not _can_fork():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="gradinversion-", ignore_cleanup_errors=True) as folder:
        address = Path(folder) / "fork"
        process = _begin(address)
        _addresses.append(address)
        try:
            yield
        finally:
            _addresses.remove(address)
            assert process.stdin is not None
            process.stdin.close()  # which ends it
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE_SECONDS)
            process.kill()
            process.wait()


@contextmanager
def handing_over() -> Iterator[Path | None]:
    """The script for workers that are started meanwhile in place of Ray's own; None where nobody forks."""
    if not _addresses:
        yield None
        return
    with patch.dict(os.environ, {ADDRESS: str(_addresses[0])}):
        yield _HERE / "hand_over.py"


def _can_fork() -> bool:
    """Not with a GPU: whatever asks its driver before the fork makes it useless after, and this was never tried."""
    return sys.platform.startswith("linux") and not any(place.exists() for place in _GPUS)


def _begin(address: Path) -> subprocess.Popen[bytes]:
    with socket.socket(socket.AF_UNIX) as listener:
        # In a folder that only this user can enter. Whoever calls waits until all is loaded.
        listener.bind(str(address))
        listener.listen(128)
        command = [sys.executable, str(_HERE / "server.py"), str(listener.fileno())]
        # As Ray does for its workers. A process with threads must not fork, and these libraries would begin some.
        single = {name: os.environ.get(name, "1") for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            env=os.environ | single,
            process_group=0,  # Ctrl-C is for the one who began it
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"path": sys.path, "modules": MODULES}).encode() + b"\n")
    process.stdin.flush()
    return process

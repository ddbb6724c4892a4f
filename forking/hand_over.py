"""A worker of Ray before it is one: it has itself made by a fork, and ends; or it goes on as Ray's own script would.

Run as a script, in place of Ray's ``default_worker.py`` and with its arguments; imports nothing that takes time.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

_ADDRESS = "GRADINVERSION_FORK_SERVER"


def hand_over(address: str, words: list[str]) -> bool:
    """Whether a process was forked that does the work of this one.

    Args:
        address: The socket of ``server.py``.
        words: Script and arguments.
    """
    try:
        message = _message(words)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(address)
            socket.send_fds(caller, [len(message).to_bytes(8, "big")], [0, 1, 2])
            caller.sendall(message)
            return caller.recv(1) == b"1"
    except OSError:
        return False


def _message(words: list[str]) -> bytes:
    asked = {
        "words": words,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        # What Ray gave this process, for the one that takes its place.
        "niceness": os.nice(0),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "oom": Path("/proc/self/oom_score_adj").read_text(),
    }
    return json.dumps(asked).encode()


def main() -> None:
    """Hand over, or become Ray's worker."""
    found = find_spec("ray")
    assert found is not None
    assert found.origin is not None
    words = [str(Path(found.origin).parent / "_private" / "workers" / "default_worker.py"), *sys.argv[1:]]
    if not hand_over(os.environ.get(_ADDRESS, ""), words):
        os.execv(sys.executable, [sys.executable, *words])


if __name__ == "__main__":
    main()

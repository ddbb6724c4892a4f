"""The process that forks: it loads what every agent needs once, and each that it forks shares the memory of that.

Run as a script with the number of a listening socket; it ends when whoever began it closes its standard input.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    """Load, then fork for every caller."""
    # What is forked has another parent as soon as this one ends; nobody waits for it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(fileno=int(sys.argv[1]))
    told = json.loads(_first_line())
    # This script's folder is no place for imports.
    sys.path[:] = [place for place in told["path"] if place]
    for name in told["modules"]:
        # What is not found here is missed, with a message, by the one who needs it.
        with contextlib.suppress(ImportError):
            import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        return  # a lock that another thread holds would be held for ever in what is forked
    gc.collect()
    gc.freeze()  # else the next collection would copy all pages
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        caller, _ = listener.accept()
        with caller:
            if _serve(caller, listener):
                return


def _first_line() -> bytes:
    """Without a buffer, which would hide that the rest has ended."""
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(sys.stdin.fileno(), 1)
        if not more:
            sys.exit()
        line += more
    return line


def _serve(caller: socket.socket, listener: socket.socket) -> bool:
    """Fork for one caller; whether this is what was forked, at the end of its work."""
    size, files, _, _ = socket.recv_fds(caller, 8, 3)
    message = b""
    while len(size) == 8 and len(message) < int.from_bytes(size, "big") and (more := caller.recv(2**16)):
        message += more
    if (asked := _read(message)) is not None:
        if os.fork() == 0:
            caller.close()
            listener.close()
            _become(asked, files)
            return True
        with contextlib.suppress(OSError):
            caller.send(b"1")
    for number in files:
        os.close(number)
    return False


def _read(message: bytes) -> Any:
    """What a caller asks for; None of one that was ended meanwhile."""
    try:
        return json.loads(message)
    except ValueError:
        return None


def _become(asked: dict[str, Any], files: list[int]) -> None:
    """Be the process that called: its place, its environment, its files and its limits; then its script."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    os.nice(asked["niceness"] - os.nice(0))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, tuple(asked["files"]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(asked["oom"])
    sys.argv = asked["words"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

"""The process that forks: it has loaded what every agent needs, and each that it forks shares the memory of that.

Run as a script with the number of a listening socket, it loads all that first. It ends when whoever began it has closed
the other end of its input, or has ended.
"""

from __future__ import annotations

import atexit
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
import threading
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    """Load, then fork for every caller."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    told = json.loads(_first_line())
    # This script's folder is no place for imports.
    sys.path[:] = [place for place in told["path"] if place]
    load(told["modules"])
    if has_threads():
        _leave(listener)
    else:
        serve(listener, sys.stdin.fileno())


def load(names: list[str]) -> None:
    """Import modules; what is not found here is missed, with a message, by the one who needs it."""
    for name in names:
        with contextlib.suppress(ImportError):
            import_module(name)


def has_threads() -> bool:
    """Whether this process has others than its main one: a lock of theirs would be held for ever in what is forked."""
    return len(os.listdir("/proc/self/task")) > 1


def serve(listener: socket.socket, lifeline: int) -> None:
    """Fork for every caller until the lifeline's other end is closed."""
    # What is forked has another parent as soon as this process ends; nobody waits for it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # else the next collection would copy all pages
    try:
        while lifeline not in select.select([listener.fileno(), lifeline], [], [])[0]:
            caller, _ = listener.accept()
            # One that leaves, or for whom the system has no process now, does its work itself.
            with caller, contextlib.suppress(OSError):
                _answer(caller, listener, lifeline)
    finally:
        _leave(listener)


def _leave(listener: socket.socket) -> None:
    """Remove the socket and its folder: whoever made them may have been killed, and removes nothing then."""
    with contextlib.suppress(OSError):
        address = Path(listener.getsockname())
        address.unlink()
        address.parent.rmdir()


def _first_line() -> bytes:
    """Without a buffer, which would hide that the rest has ended."""
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(sys.stdin.fileno(), 1)
        if not more:
            sys.exit()
        line += more
    return line


def _answer(caller: socket.socket, listener: socket.socket, lifeline: int) -> None:
    """Fork for one caller, and tell it so."""
    size, files, _, _ = socket.recv_fds(caller, 8, 3)
    message = b""
    while len(size) == 8 and len(message) < int.from_bytes(size, "big") and (more := caller.recv(2**16)):
        message += more
    try:
        if (asked := _read(message)) is not None:
            if os.fork() == 0:
                caller.close()
                listener.close()
                _live(asked, files, lifeline)
            caller.send(b"1")
    finally:
        for number in files:
            os.close(number)


def _read(message: bytes) -> Any:
    """What a caller asks for; None of one that was ended meanwhile."""
    try:
        return json.loads(message)
    except ValueError:
        return None


def _live(asked: dict[str, Any], files: list[int], lifeline: int) -> None:
    """The whole life of what was forked. It never returns into what the process was copied from."""
    status = 1
    try:
        _become(asked, files, lifeline)
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    # As an interpreter does at its end.
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _become(asked: dict[str, Any], files: list[int], lifeline: int) -> None:
    """Be the process that called: its place, its environment, its files and its limits."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # As Ray's workers have it: where one ends, Ray ends what is left in its group, and that must be nobody else.
    os.setpgid(0, 0)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    if lifeline > 2:
        os.close(lifeline)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    os.nice(asked["niceness"] - os.nice(0))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, tuple(asked["files"]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(asked["oom"])
    _take_threads()
    sys.argv = asked["words"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))


def _take_threads() -> None:
    """The number of threads that the environment asks for, which torch has read before it was this one; else 1.

    So has Ray it for what asks for no core, but says so only when torch no longer looks. With as many as there are
    cores, sums would differ in their last bits from those of a worker that was not forked.
    """
    asked, torch = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0], sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(int(asked) if asked.isdecimal() and int(asked) else 1)


if __name__ == "__main__":
    main()

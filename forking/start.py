"""The process that forks, as whoever wants it sees it: begun early, used by a Ray of our own, ended with its user."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

from .server import has_threads, load, serve

ADDRESS = "GRADINVERSION_FORK_SERVER"
"""The environment variable that tells workers where the process listens; a user who wants none sets it to ``off``."""
# What agents and coordinators load, but for Ray, which reads the environment while it is loaded.
MODULES = (
    *("gradinversion.agents", "gradinversion.coordinator", "gradinversion.target.preparation"),
    "gradinversion.registration.register",
)
# Of NVIDIA, of AMD, and of either under Windows' Linux.
_GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
_PATIENCE_SECONDS = 5.0
_STREAMS = (0, 1, 2)
_PREFIX = "gradinversion-"
# Of the folder for ours: the path of a socket has at most 107 bytes, and the name that tempfile adds has 8.
_LONGEST = 107 - len(f"/{_PREFIX}12345678/fork")
_HERE = Path(__file__).parent
_addresses: list[Path] = []


@contextmanager
def fork_server() -> Iterator[None]:
    """Have the process for the time of a ``with``; where there is one already, or none can be, nothing happens.

    Where this process has neither threads nor Ray, as the command at its beginning, it loads all itself and is the one
    that is copied, so that it shares its memory too. Elsewhere another process loads while this one goes on.
    """
    if _addresses or os.environ.get(ADDRESS) == "off" or not _can_fork():
        yield
        return
    with ExitStack() as stack:
        # It only saves time and memory: without room, processes or sockets for it, workers load everything themselves.
        with contextlib.suppress(OSError), ExitStack() as made:
            _listen(made)
            stack.enter_context(made.pop_all())
        yield


def _listen(stack: ExitStack) -> None:
    """Make the process, and have its end in the stack.

    Raises:
        OSError: The system has no place for it; what was made until then is in the stack.
    """
    place = tempfile.gettempdir()
    # Not one that removes itself at the end of an interpreter: copies of this process have one too.
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=place if len(os.fsencode(place)) <= _LONGEST else "/tmp")
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    address = Path(folder) / "fork"
    with socket.socket(socket.AF_UNIX) as listener:
        # In a folder that only this user can enter. Whoever calls waits until all is loaded.
        listener.bind(str(address))
        listener.listen(128)
        stack.callback(_fork(listener) or _begin(listener))
    _addresses.append(address)
    stack.callback(_addresses.remove, address)


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


def _fork(listener: socket.socket) -> Callable[[], None] | None:
    """A copy of this process that serves, and how to end it; None where this process is none to be copied."""
    if "ray" in sys.modules or has_threads():
        return None
    # Its threads would begin with the import.
    with patch.dict(os.environ, {"OPENBLAS_NUM_THREADS": "1"}):
        load(list(MODULES))
    if "ray" in sys.modules or has_threads():
        return None
    lifeline, ours = os.pipe()
    if min(lifeline, listener.fileno()) <= _STREAMS[-1]:  # this process was begun without its streams
        os.close(lifeline)
        os.close(ours)
        return None
    gc.collect()
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # else both would write what waits
        number = os.fork()
    except OSError:
        os.close(lifeline)
        os.close(ours)
        raise
    if number == 0:
        os.close(ours)
        _stand_alone(listener, lifeline)
    os.close(lifeline)

    def end() -> None:
        os.close(ours)  # which ends it
        # A program that does not wait for its children has no number of one that has ended.
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            _end(number)

    return end


def _end(number: int) -> None:
    """Wait until a child ends, or end it; by its number: not every Python and kernel has descriptors of processes."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while os.waitpid(number, os.WNOHANG)[0] != number:
        if time.monotonic() > until:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
            return
        time.sleep(0.005)


def _stand_alone(listener: socket.socket, lifeline: int) -> None:
    """The life of the copy: it has nothing to do with the terminal and the streams of what it was copied from."""
    try:
        os.setpgid(0, 0)  # Ctrl-C is for the one who began it
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in _STREAMS:
            os.dup2(nothing, number)
        for ending in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(ending) is not signal.SIG_IGN:
                signal.signal(ending, signal.SIG_DFL)
        sys.path[:] = [place for place in sys.path if place]
        serve(listener, lifeline)
    finally:
        os._exit(0)


def _begin(listener: socket.socket) -> Callable[[], None]:
    """Another process that loads and serves, and how to end it."""
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
    stream = process.stdin

    def end() -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and was not told all
            stream.close()  # which ends it once it has loaded all
        process.terminate()  # a command that is refused does not wait for that
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_SECONDS)
        process.kill()
        process.wait()

    try:
        stream.write(json.dumps({"path": sys.path, "modules": MODULES}).encode() + b"\n")
        stream.flush()
    except OSError:
        end()
        raise
    return end

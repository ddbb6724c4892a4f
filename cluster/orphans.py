"""What a Ray of our own leaves behind for a minute where the process that started it is killed: ended at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Waits until nobody holds the other end of its input any more, then ends what the given descriptors stand for. These
# are of processes and not of their numbers, which the system may have given to others by then.
_WATCHER = f"""
import signal, sys
sys.stdin.buffer.read()
for descriptor in map(int, sys.argv[1:]):
    try:
        signal.pidfd_send_signal(descriptor, {int(signal.SIGKILL)})
    except OSError:
        pass
"""


@contextmanager
def ended_with_this_process(parent: int | None) -> Iterator[None]:
    """The children of ``parent`` end when this process does, however it ends, and at the end of the context.

    Ray's raylet ends with whoever started it, but not its two agents: these first tell the control service, which is
    gone as well, and wait a minute for it.

    Args:
        parent: The number of a process; None, or a system without such descriptors (all but Linux): nothing is done.
    """
    descriptors = list(_open(children(parent))) if parent is not None and sys.platform == "linux" else []
    if not descriptors:
        yield
        return
    # In a session of its own, so that no signal to ours ends it before its work.
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCHER, *map(str, descriptors)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=descriptors,
        start_new_session=True,
    )
    for descriptor in descriptors:
        os.close(descriptor)
    try:
        yield
    finally:
        watcher.communicate()


def children(parent: int) -> list[int]:
    """The processes that a process has started and that have not ended; on Linux."""
    found = []
    for entry in Path("/proc").iterdir():
        # A process may end while it is looked at.
        with contextlib.suppress(OSError, ValueError):
            state, its_parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            if int(its_parent) == parent and state != "Z":
                found.append(int(entry.name))
    return sorted(found)


def _open(processes: list[int]) -> Iterator[int]:
    for process in processes:
        # It has ended; or the kernel is older than these descriptors, or what this Python was built with, or refuses.
        with contextlib.suppress(OSError, AttributeError):
            yield os.pidfd_open(process)

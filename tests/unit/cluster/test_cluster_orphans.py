"""Children of another process end with the one that watches; no Ray is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from gradinversion.cluster.orphans import children, ended_with_this_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the descriptors of processes are Linux's")

_SLEEPER = "import subprocess, time; subprocess.Popen(['sleep', '600']); print('there', flush=True); time.sleep(600)"
_WATCHER = """
import sys, time
from gradinversion.cluster.orphans import ended_with_this_process
with ended_with_this_process(int(sys.argv[1])):
    print("there", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def parent() -> Iterator[int]:
    """A process with one child."""
    with subprocess.Popen([sys.executable, "-c", _SLEEPER], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        yield process.pid
        for child in children(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()


def wait_until_childless(parent: int) -> None:
    until = time.monotonic() + 60
    while children(parent) and time.monotonic() < until:
        time.sleep(0.02)
    assert children(parent) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_when_the_watching_process_is_killed(parent: int, number: signal.Signals) -> None:
    command = [sys.executable, "-c", _WATCHER, str(parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"there\n"
        assert len(children(parent)) == 1
        os.killpg(watching.pid, number)
    wait_until_childless(parent)


def test_children_end_with_the_context_and_not_before(parent: int) -> None:
    with ended_with_this_process(parent):
        assert len(children(parent)) == 1
    wait_until_childless(parent)


def test_children_that_have_ended_by_themselves_are_no_trouble(parent: int) -> None:
    with ended_with_this_process(parent):
        os.kill(children(parent)[0], signal.SIGKILL)
        wait_until_childless(parent)


def test_no_descriptor_is_left_open(parent: int) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with ended_with_this_process(parent):
        pass
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("error", [OSError, PermissionError, None])
def test_where_there_are_no_descriptors_of_processes_nothing_is_done(
    parent: int, monkeypatch: pytest.MonkeyPatch, error: type[OSError] | None
) -> None:
    def refused(number: int) -> int:
        assert error is not None
        raise error

    if error is None:
        monkeypatch.delattr(os, "pidfd_open")  # as in a Python that was built with what an old kernel has
    else:
        monkeypatch.setattr(os, "pidfd_open", refused)
    with ended_with_this_process(parent):
        pass
    assert len(children(parent)) == 1


def test_where_there_is_no_process_nothing_is_done() -> None:
    with ended_with_this_process(None):
        pass
    assert children(os.getpid()) == []

"""Where the system gives no place for a process that forks, and how one ends whose user is gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gradinversion.forking import hand_over, start
from gradinversion.forking.start import ADDRESS, fork_server, handing_over

# Has a process that forks: a copy of itself, or one beside it. It says where that listens, and waits to be told to end.
USER = """
import os, sys
from gradinversion.forking import fork_server, handing_over, start
start.MODULES, start._GPUS = (), ()
exec(sys.argv[1])
with fork_server(), handing_over() as script:
    print(os.environ.get(start.ADDRESS), flush=True)
    sys.stdin.readline()
print("over", flush=True)
"""
BESIDE = "start._fork = lambda listener: None"
WITHOUT_DESCRIPTORS = "del os.pidfd_open"
STUBBORN = "start._PATIENCE_SECONDS = 0.1; start.serve = lambda *_: __import__('time').sleep(600)"
FORKS_NO_MORE = """
serve = start.serve
def refuses():
    raise BlockingIOError
def serves(*ends):
    os.fork = refuses
    serve(*ends)
start.serve = serves
"""
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no such process elsewhere")


@pytest.fixture(autouse=True)
def _wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One beside this program, with a folder in the test's own."""
    monkeypatch.delenv(ADDRESS, raising=False)
    monkeypatch.setattr(start, "MODULES", ())
    monkeypatch.setattr(start, "_GPUS", ())
    monkeypatch.setattr(start, "_fork", lambda _: None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def begun(*lines: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", USER, "; ".join(lines)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def listens(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    address = Path(process.stdout.readline().strip())
    assert address.is_socket()
    return address


def nobody_forks(folder: Path) -> None:
    """What a program sees where there is none; nothing is left of the attempt."""
    descriptors = set(os.listdir("/proc/self/fd"))
    with fork_server(), handing_over() as script:
        assert script is None
        assert ADDRESS not in os.environ
    assert list(folder.iterdir()) == []
    assert set(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("excess", [0, 1, 100])
def test_a_long_temporary_folder_is_replaced_by_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, excess: int
) -> None:
    folder = tmp_path / ("l" * (start._LONGEST + excess - len(f"{tmp_path}/")))
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with fork_server(), handing_over() as script:
        assert script is not None
        address = Path(os.environ[ADDRESS])
        assert address.is_socket()
        assert address.parent.parent == (Path("/tmp") if excess else folder)
        assert address.parent.stat().st_mode & 0o077 == 0
    assert not address.parent.exists()


def refuses(*_: object, **__: object) -> None:
    raise OSError("as on a system without room")


class Unbound(socket.socket):
    bind = refuses


@pytest.mark.parametrize(
    ("owner", "name", "means"),
    [(tempfile, "mkdtemp", refuses), (socket, "socket", Unbound), (subprocess, "Popen", refuses)],
    ids=["no folder", "no socket", "no process"],
)
def test_where_one_cannot_be_made_workers_begin_as_ray_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, owner: object, name: str, means: Callable[..., None]
) -> None:
    monkeypatch.setattr(owner, name, means)
    nobody_forks(tmp_path)


def test_where_this_program_cannot_be_copied_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.delenv(ADDRESS, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, means in {"MODULES": (), "_GPUS": (), "has_threads": lambda: False}.items():
        monkeypatch.setattr(start, name, means)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(os, "fork", refuses)
    nobody_forks(tmp_path)


def test_where_the_process_ends_before_it_was_told_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(start, "MODULES", ("x" * 2**20,))  # more than a pipe holds
    monkeypatch.setattr(start, "_HERE", tmp_path / "none")
    nobody_forks(tmp_path)


def test_an_error_of_the_user_stays_one() -> None:
    with pytest.raises(OSError, match="of the user"), fork_server():
        raise OSError("of the user")


def test_where_it_cannot_fork_now_the_caller_does_its_work_itself_and_it_stays() -> None:
    with begun(FORKS_NO_MORE) as process:
        address = listens(process)
        assert [hand_over.hand_over(str(address), ["script.py"]) for _ in range(2)] == [False, False]
        assert address.is_socket()
        process.communicate("\n", timeout=120)


@pytest.mark.parametrize("line", ["", BESIDE])
def test_nothing_is_left_of_a_program_that_was_killed(line: str) -> None:
    with begun(line) as process:
        address = listens(process)
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 60
    while address.parent.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not address.parent.exists()


def test_one_beside_that_still_loads_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "loads_for_long.py").write_text("import time; time.sleep(600)")
    loads = f"sys.path.append({str(tmp_path)!r}); start.MODULES = ('loads_for_long',); start._PATIENCE_SECONDS = 500"
    with begun(BESIDE, loads) as process:
        address = listens(process)
        assert process.communicate("\n", timeout=120)[0] == "over\n"
    assert process.returncode == 0
    assert not address.parent.exists()


@pytest.mark.parametrize(
    "lines", [(WITHOUT_DESCRIPTORS,), (STUBBORN,), ("import signal; signal.signal(17, signal.SIG_IGN)",)]
)
def test_a_copy_ends_with_its_user_and_is_waited_for(lines: tuple[str, ...]) -> None:
    with begun(*lines) as process:
        address = listens(process)
        (number,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert process.communicate("\n", timeout=120)[0] == "over\n"
    assert process.returncode == 0
    assert not address.parent.exists()
    assert not Path(f"/proc/{number}").exists()

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradinversion import forking
from gradinversion.forking import hand_over, start
from gradinversion.forking.start import ADDRESS, fork_server, handing_over

SCRIPT = """
import json, os, sys, threading
told = {"words": sys.argv[1:], "loaded": "tabnanny" in sys.modules, "folder": os.getcwd(), "niceness": os.nice(0)}
told |= {"variable": os.environ.get("ONLY_HERE"), "main": __name__, "parent": os.getppid(), "own": os.getpid()}
told |= {"threads": threading.active_count(), "first": sys.path[0], "of_server": "OPENBLAS_NUM_THREADS" in os.environ}
print(json.dumps(told), flush=True)
sys.exit(3)
"""
CALL = """
import sys
sys.path.insert(0, sys.argv[1])
from hand_over import hand_over
sys.exit(0 if hand_over(sys.argv[2], sys.argv[3:]) else 1)
"""
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no such process elsewhere")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a process that has loaded a module that nothing else loads."""
    monkeypatch.setenv(ADDRESS, "on")
    monkeypatch.setattr(start, "MODULES", ("tabnanny", "there.is.none"))
    monkeypatch.setattr(start, "_GPUS", ())
    with fork_server(), handing_over() as script:
        assert script is not None
        assert script.name == "hand_over.py"
        yield os.environ[ADDRESS]


def called(address: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CALL, str(Path(forking.__file__).parent), address, *words]
    known = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    return subprocess.run(
        command, cwd=folder, env=known | {"ONLY_HERE": "yes"}, capture_output=True, text=True, check=False
    )


def test_what_is_forked_has_the_libraries_and_stands_where_its_caller_stood(address: str, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(SCRIPT)
    done = called(address, tmp_path, str(tmp_path / "worker.py"), "--one", "two three")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["words"] == ["--one", "two three"]
    assert told["loaded"]
    assert told["main"] == "__main__"
    assert told["variable"] == "yes"
    assert not told["of_server"]
    assert told["folder"] == str(tmp_path)
    assert told["first"] == str(tmp_path)
    assert told["niceness"] == os.nice(0)
    assert told["threads"] == 1
    assert told["own"] != told["parent"]


def test_several_are_forked_by_the_same_and_each_is_a_process_of_its_own(address: str, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(SCRIPT)
    told = [json.loads(called(address, tmp_path, str(tmp_path / "worker.py")).stdout) for _ in range(3)]
    assert len({one["own"] for one in told}) == 3
    assert len({one["parent"] for one in told}) == 1


def test_an_error_in_what_is_forked_is_told_where_the_caller_s_errors_go_and_ends_it_alone(
    address: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError('as written')")
    (tmp_path / "worker.py").write_text(SCRIPT)
    assert "as written" in called(address, tmp_path, str(tmp_path / "broken.py")).stderr
    assert called(address, tmp_path, str(tmp_path / "worker.py")).stdout


def test_what_was_forked_outlives_the_one_who_forked_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ADDRESS, "on")
    monkeypatch.setattr(start, "MODULES", ())
    monkeypatch.setattr(start, "_GPUS", ())
    waiting, told = tmp_path / "waiting", tmp_path / "told"
    waiting.touch()
    (tmp_path / "worker.py").write_text(
        "import pathlib, sys, time\n"
        "while pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
        "pathlib.Path(sys.argv[2]).write_text('done')"
    )
    command = [sys.executable, "-c", CALL, str(Path(forking.__file__).parent)]
    with fork_server(), handing_over():
        words = [os.environ[ADDRESS], str(tmp_path / "worker.py"), str(waiting), str(told)]
        subprocess.run([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    waiting.unlink()
    while not told.exists():
        time.sleep(0.01)


def test_where_nobody_answers_the_caller_does_its_work_itself(tmp_path: Path) -> None:
    assert not hand_over.hand_over(str(tmp_path / "none"), ["script.py"])
    assert not hand_over.hand_over("", ["script.py"])


def test_a_caller_that_says_nonsense_or_leaves_does_no_harm(address: str, tmp_path: Path) -> None:
    for content in (b"", b"\x00" * 8, (4).to_bytes(8, "big") + b"nope"):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(address)
            caller.sendall(content)
    (tmp_path / "worker.py").write_text(SCRIPT)
    assert called(address, tmp_path, str(tmp_path / "worker.py")).stdout


def test_there_is_one_however_often_it_is_asked_for_and_none_where_nobody_wants_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fork_server(), handing_over():
        assert os.environ[ADDRESS] == address
    with monkeypatch.context() as patch:
        patch.setattr(start, "_addresses", [])
        patch.delenv(ADDRESS, raising=False)
        with fork_server(), handing_over() as script:
            assert script is None


def test_there_is_none_beside_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ADDRESS, "on")
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(start, "_GPUS", (tmp_path / "nvidiactl",))
    with fork_server(), handing_over() as script:
        assert script is None


def test_only_its_user_reaches_it(address: str) -> None:
    assert Path(address).parent.stat().st_mode & 0o077 == 0

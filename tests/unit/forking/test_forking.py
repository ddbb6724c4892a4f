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
told["group"] = os.getpgid(0)
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
# A program that is copied itself: it has neither threads nor Ray. What it was told is printed, and its own last words.
COPIED = """
import os, subprocess, sys, time
from pathlib import Path
from gradinversion.forking import fork_server, handing_over, start
start.MODULES, start._GPUS = tuple(sys.argv[2].split(",")), ()
print(os.getpid(), flush=True)
print("waits for the end of a line", end="")
try:
    with fork_server(), handing_over():
        print()
        place = Path(os.environ[start.ADDRESS])
        subprocess.run([sys.executable, "-c", sys.argv[1], *sys.argv[3:4], str(place), *sys.argv[4:]], check=True)
        told = Path(sys.argv[-1])
        while not told.exists() or not told.read_text().endswith("}"):
            time.sleep(0.01)
        print(told.read_text())
finally:
    print("over", place.parent.exists())
"""
WORKER = """
import atexit, json, os, sys
from pathlib import Path
torch = sys.modules.get("torch")
told = {"loaded": "tabnanny" in sys.modules, "parent": os.getppid(), "own": os.getpid(), "folder": os.getcwd()}
told["grandparent"] = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1])
told["threads"] = None if torch is None else torch.get_num_threads()
told["files"] = sorted(os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2))
atexit.register(lambda: Path(sys.argv[1]).write_text(json.dumps(told)))
sys.exit("as every program may")
"""
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no such process elsewhere")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a process that has loaded a module that nothing else loads."""
    monkeypatch.delenv(ADDRESS, raising=False)
    monkeypatch.setattr(start, "MODULES", ("tabnanny", "there.is.none"))
    monkeypatch.setattr(start, "_GPUS", ())
    monkeypatch.setattr(start, "_fork", lambda _: None)  # pytest is none to be copied
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
    # Ray ends all of the group of a worker that has ended.
    assert [one["group"] for one in told] == [one["own"] for one in told]


def test_an_error_in_what_is_forked_is_told_where_the_caller_s_errors_go_and_ends_it_alone(
    address: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError('as written')")
    (tmp_path / "worker.py").write_text(SCRIPT)
    assert "as written" in called(address, tmp_path, str(tmp_path / "broken.py")).stderr
    assert called(address, tmp_path, str(tmp_path / "worker.py")).stdout


def test_what_was_forked_outlives_the_one_who_forked_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    monkeypatch.setattr(start, "MODULES", ())
    monkeypatch.setattr(start, "_GPUS", ())
    monkeypatch.setattr(start, "_fork", lambda _: None)
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


def test_a_caller_whose_folder_is_gone_does_its_work_itself(address: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); sys.path.insert(0, sys.argv[1]); from hand_over import hand_over; "
    code += "sys.exit(hand_over(sys.argv[2], ['script.py']))"
    # As a script has it: without the current folder on its path, in which Python 3.13.0 fails to import.
    command = [sys.executable, "-P", "-c", code, str(Path(forking.__file__).parent), address]
    done = subprocess.run(command, cwd=gone, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


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
        patch.setenv(ADDRESS, "off")
        with fork_server(), handing_over() as script:
            assert script is None


def test_there_is_none_beside_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(start, "_GPUS", (tmp_path / "nvidiactl",))
    with fork_server(), handing_over() as script:
        assert script is None


def test_only_its_user_reaches_it(address: str) -> None:
    assert Path(address).parent.stat().st_mode & 0o077 == 0


def copied(modules: str, folder: Path, **environment: str) -> list[str]:
    """What a program that is copied itself prints, which has one worker made by it."""
    (folder / "worker.py").write_text(WORKER)
    words = [CALL, modules, str(Path(forking.__file__).parent), str(folder / "worker.py"), str(folder / "told")]
    known = {name: value for name, value in os.environ.items() if name != ADDRESS} | environment
    done = subprocess.run(
        [sys.executable, "-c", COPIED, *words], env=known, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "as every program may" in done.stderr
    return done.stdout.splitlines()


def test_a_program_without_threads_is_copied_itself_and_each_says_its_own_words_once(tmp_path: Path) -> None:
    number, waited, told, over = copied("tabnanny,there.is.none", tmp_path)
    assert waited == "waits for the end of a line"
    assert over == "over False"  # the copies have removed nothing while it was used, and it is gone at the end
    found = json.loads(told)
    assert found["loaded"]
    assert found["grandparent"] == int(number)
    assert found["parent"] != int(number)
    assert found["folder"] == str(tmp_path)
    assert not os.path.exists(f"/proc/{found['parent']}")


@pytest.mark.parametrize(("asked", "threads"), [("3", 3), ("2,4", 2), (None, 1)])
def test_what_is_forked_has_the_number_of_threads_that_its_environment_names_or_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, threads: int
) -> None:
    """One, as Ray has it for what asks for no core; on more cores than one the program itself has them all."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = json.loads(copied("torch", tmp_path, **({} if asked is None else {"OMP_NUM_THREADS": asked}))[2])
    assert found["threads"] == threads


def test_a_program_with_threads_or_with_ray_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.setattr(start, "has_threads", lambda: True)
        assert start._fork(listener) is None
        monkeypatch.setattr(start, "has_threads", lambda: False)
        monkeypatch.setitem(sys.modules, "ray", sys)
        assert start._fork(listener) is None

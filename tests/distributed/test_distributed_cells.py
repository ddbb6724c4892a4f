"""Jobs side by side on a real local Ray: what one of them does is no matter of the others."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gradinversion.cluster import Ended, Job, run_side_by_side
from ray import cloudpickle

Tell = Callable[[Any], None]
TRIES = 3000


@pytest.fixture(autouse=True)
def _functions_of_this_module() -> Iterator[None]:
    """The workers cannot import a test."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def give(value: Any, tell: Tell) -> Any:
    return value


def fail(text: str, tell: Tell) -> None:
    raise ValueError(f"{text}\nand a second line")


def leave(tell: Tell) -> None:
    raise SystemExit(3)


def die(tell: Tell) -> None:
    os._exit(1)


def die_once(folder: str, tell: Tell) -> str:
    marker = Path(folder) / "died"
    if not marker.exists():
        marker.touch()
        os._exit(1)
    return "second time"


def meet(folder: str, name: str, tell: Tell) -> int:
    """How many are there with this one, over a while."""
    mine, most = Path(folder) / name, 0
    mine.touch()
    for _ in range(10):
        most = max(most, len(list(Path(folder).iterdir())))
        time.sleep(0.05)
    mine.unlink()
    return most


def tell_and_wait(folder: str, tell: Tell) -> int:
    """Until the one who looks on has seen it."""
    tell("here")
    while not (Path(folder) / "seen").exists():
        time.sleep(0.05)
    return os.getpid()


def stay(folder: str, tell: Tell) -> None:
    (Path(folder) / "pid").write_text(str(os.getpid()))
    time.sleep(3600)


def ends(*jobs: Job, at_once: int = 2) -> dict[str, Ended]:
    return {end.name: end for end in run_side_by_side(jobs, at_once)}


def test_one_bad_job_never_stops_the_others(tmp_path: Path) -> None:
    found = ends(
        Job("first", give, (1,), about=7),
        Job("raises", fail, ("no images",)),
        Job("leaves", leave, ()),
        Job("dies", die, (), about="dying"),
        Job("dies once", die_once, (str(tmp_path),)),
        Job("last", give, ({"x": 2},)),
    )
    assert (found["first"].value, found["last"].value) == (1, {"x": 2})
    assert (found["first"].about, found["dies"].about, found["last"].about) == (7, "dying", None)
    assert found["raises"].problem == "ValueError: no images"
    assert "and a second line" in found["raises"].details
    assert found["leaves"].problem == "SystemExit: 3"
    assert found["dies"].problem == "Its process was lost, and again when it was begun anew."
    assert found["dies once"].value == "second time"


def test_no_more_at_once_than_asked_for(tmp_path: Path) -> None:
    jobs = [Job(name, meet, (str(tmp_path), name)) for name in ("a", "b", "c", "d")]
    assert max(end.value for end in ends(*jobs, at_once=1).values()) == 1
    assert max(end.value for end in ends(*jobs, at_once=2).values()) <= 2


def test_jobs_are_taken_only_when_there_is_room(tmp_path: Path) -> None:
    taken: list[str] = []

    def jobs() -> Iterator[Job]:
        for name in ("a", "b", "c"):
            taken.append(name)
            yield Job(name, give, (name,))

    seen = [(end.name, len(taken)) for end in run_side_by_side(jobs(), 1)]
    assert seen == [("a", 1), ("b", 2), ("c", 3)]


def test_who_looks_on_sees_the_newest_state(tmp_path: Path) -> None:
    def look(states: dict[str, Any]) -> None:
        if states == {"job": "here"}:
            (tmp_path / "seen").touch()

    (end,) = run_side_by_side([Job("job", tell_and_wait, (str(tmp_path),))], 1, look)
    assert end.value != os.getpid()


def test_jobs_end_with_the_one_who_wants_them(tmp_path: Path) -> None:
    jobs = run_side_by_side([Job("short", give, (1,)), Job("long", stay, (str(tmp_path),))], 2)
    assert next(jobs).name == "short"
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    pid = int((tmp_path / "pid").read_text())
    jobs.close()  # type: ignore[attr-defined]
    wait_for(lambda: not alive(pid))


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(TRIES):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("never")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False

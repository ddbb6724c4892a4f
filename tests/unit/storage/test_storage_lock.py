"""One run at a time in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gradinversion.storage.folders import Storage, StorageError
from gradinversion.storage.lock import InUseError, holding, require_free

HOLD = """
import sys
from gradinversion.storage.folders import Storage
from gradinversion.storage.lock import InUseError, holding
try:
    with holding(Storage(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except InUseError as error:
    print(error)
"""


def other(folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOLD, str(folder)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_second_process_is_refused_by_name_until_the_first_ends(tmp_path: Path) -> None:
    with holding(Storage(tmp_path)), other(tmp_path) as second:
        said, _ = second.communicate("\n")
        assert said.startswith(f"Another run is under way in {tmp_path} on this machine")
    with other(tmp_path) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match="Another run is under way"), holding(Storage(tmp_path)):
            pass
        with pytest.raises(InUseError, match="Another run is under way"):
            require_free(Storage(tmp_path))
        second.kill()
        second.wait()
        with holding(Storage(tmp_path)):
            pass


def test_a_part_of_what_holds_the_folder_may_use_it(tmp_path: Path) -> None:
    with holding(Storage(tmp_path)):
        with holding(Storage(f"{tmp_path}/")):
            pass
        with other(tmp_path) as second:
            assert second.communicate("\n")[0].startswith("Another run")


@pytest.mark.parametrize("name", ["", "absent", "file", "file/below"])
def test_what_nobody_runs_in_is_free_and_left_as_it_was(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    require_free(Storage(tmp_path / name))
    require_free(Storage("memory://bucket/run"))
    with holding(Storage(tmp_path)):
        require_free(Storage(tmp_path))  # of who holds it
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), holding(Storage(tmp_path / "a")):
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []
    with holding(Storage(tmp_path / "b")):
        (tmp_path / "b" / "file").write_text("kept")
    assert (tmp_path / "b" / "file").read_text() == "kept"


def test_a_bucket_and_no_folder_are_not_held() -> None:
    with holding(Storage("memory://bucket/run")), holding(None):
        pass


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="give another folder"), holding(Storage(tmp_path / "file" / "out")):
        pass

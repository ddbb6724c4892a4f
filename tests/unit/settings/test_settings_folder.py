"""The settings in the folder of a run."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from gradinversion.audit import ReportError
from gradinversion.coordinator import CheckpointError
from gradinversion.refusal import ConfigError
from gradinversion.settings.folder import open_folder, read_settings, remove_settings, settings_of_the_run
from gradinversion.settings.run import config_yaml, load_config
from gradinversion.storage.folders import Storage
from gradinversion.storage.lock import InUseError


def test_a_folder_tells_what_it_was_begun_with(tmp_path: Path) -> None:
    config = load_config([f"out={tmp_path}", "seed=7", "agents.count=3"])
    storage = open_folder(config)
    assert read_settings(storage) == config
    remove_settings(storage)
    assert read_settings(storage) is None


def test_a_run_with_other_settings_is_not_continued_and_left_as_it_was(tmp_path: Path) -> None:
    begun = load_config([f"out={tmp_path}", "seed=7"])
    open_folder(begun)
    with pytest.raises(ConfigError, match=r"(?s)other settings.*seed \(7 before, 8 now\)"):
        open_folder(load_config([f"out={tmp_path}", "seed=8", "resume=true"]))
    assert read_settings(Storage(tmp_path)) == begun
    again = load_config([f"out={tmp_path}", "seed=7", "agents.patience=1", "resume=true"])
    open_folder(again)
    assert read_settings(Storage(tmp_path)) == again


def test_a_folder_without_a_run_is_continued_as_a_new_one(tmp_path: Path) -> None:
    config = load_config([f"out={tmp_path}", "resume=true"])
    open_folder(config)
    assert read_settings(Storage(tmp_path)) == config


@pytest.mark.parametrize("words", [[], ["resume=true"], ["resume=true", "seed=7"], ["restart=true"]])
def test_a_second_run_at_once_is_refused_by_name_whatever_lies_there(tmp_path: Path, words: list[str]) -> None:
    out = f"out={tmp_path}"
    open_folder(load_config([out]))
    (tmp_path / "checkpoints" / "round-000000").mkdir(parents=True)
    before = (tmp_path / "config.yaml").read_bytes()
    # As another process has it: what this one holds by `holding` its own parts may use.
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(InUseError, match="Another run is under way in"):
            open_folder(load_config([out, *words]))
    finally:
        os.close(descriptor)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="cannot be written"):
        open_folder(load_config([f"out={tmp_path}/file/out"]))


def test_whoever_looks_on_has_the_settings_of_the_run_and_where_it_is_now(tmp_path: Path) -> None:
    begun = load_config([f"out={tmp_path}/elsewhere", "seed=7", "told.learning_rate=0.5", "update=u.safetensors"])
    (tmp_path / "config.yaml").write_text(config_yaml(begun), encoding="utf-8")
    found = settings_of_the_run(load_config([f"out={tmp_path}"]))
    assert (found.out, found.seed, found.update) == (str(tmp_path), 7, "u.safetensors")
    given = [f"out={tmp_path}", "update=u.safetensors", "private=mine"]
    assert settings_of_the_run(load_config(given)).private.images == "mine"
    assert settings_of_the_run(load_config([*given, "told.learning_rate=0.5"])).told == begun.told
    with pytest.raises(ConfigError, match=r"told\.momentum: the run in .* was made without it"):
        settings_of_the_run(load_config([*given, "told.momentum=0.9"]))


def test_a_folder_without_a_run_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"holds no run: there is no config\.yaml"):
        settings_of_the_run(load_config([f"out={tmp_path}"]))


@pytest.mark.parametrize("left", ["round-000003", "result.json"])
def test_a_folder_with_a_run_is_cleared_only_by_the_word_for_it(tmp_path: Path, left: str) -> None:
    begun = load_config([f"out={tmp_path}", "seed=7"])
    open_folder(begun)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / left).mkdir()
    with pytest.raises(CheckpointError, match=r"resume=true goes on with it, restart=true deletes it"):
        open_folder(load_config([f"out={tmp_path}", "seed=8"]))
    assert read_settings(Storage(tmp_path)) == begun
    again = load_config([f"out={tmp_path}", "seed=8", "restart=true"])
    open_folder(again)
    assert read_settings(Storage(tmp_path)) == again


def test_a_run_is_continued_or_begun_anew_and_not_both() -> None:
    with pytest.raises(ConfigError, match="resume=true and restart=true: give one"):
        load_config(["resume=true", "restart=true"])

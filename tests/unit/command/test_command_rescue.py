"""A finished reconstruction survives a full disk: in another place, or in memory until there is room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from gradinversion.agents import AgentsConfig
from gradinversion.audit import ReportError
from gradinversion.capture import ClientConfig, simulate_client
from gradinversion.cluster import LostError
from gradinversion.command import rescue
from gradinversion.coordinator import AttackConfig, Coordinator, Reconstruction, Storage, read_result
from gradinversion.coordinator.serial_group import SerialGroup
from gradinversion.settings.folder import read_settings
from gradinversion.settings.run import RunConfig, load_config
from gradinversion.storage import atomic
from rich.console import Console


@pytest.fixture(scope="module")
def found() -> Reconstruction:
    update, model, _ = simulate_client(ClientConfig(batch_size=1, image_size=8), 0)
    config = AttackConfig(agents=AgentsConfig(count=1, iterations=4))
    return Coordinator(update, model, config, SerialGroup(config)).run()


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config([f"out={tmp_path}/out", "seed=5"])


class Disk:
    """Has no room below some folders."""

    def __init__(self, *full: Path) -> None:
        self.full = list(full)

    def save(self, path: Path, save: object) -> None:
        if any(folder in path.parents for folder in self.full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        atomic_save(path, save)  # type: ignore[arg-type]


atomic_save = atomic._save


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Disk:
    disk = Disk(tmp_path / "out")
    monkeypatch.setattr(atomic, "_save", disk.save)
    for place in ("tmp", "home"):
        (tmp_path / place).mkdir()
    monkeypatch.setattr(rescue, "_places", lambda: [str(tmp_path / "tmp"), str(tmp_path / "home")])
    return disk


def fails(found: Reconstruction, config: RunConfig, console: Console) -> str:
    with pytest.raises(LostError) as raised, rescue.kept_whatever_comes(found, config, console):
        raise ReportError("The report cannot be written.") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return str(raised.value)


def test_another_place_takes_it_with_its_settings(
    found: Reconstruction, config: RunConfig, disk: Disk, tmp_path: Path
) -> None:
    disk.full.append(tmp_path / "tmp")
    text = fails(found, config, Console())
    (kept,) = (tmp_path / "home").iterdir()
    assert f"is in {kept}" in text
    assert f"report out={kept}" in text
    back = read_result(Storage(kept))
    assert back is not None
    assert torch.equal(back.images, found.images)
    settings = read_settings(Storage(kept))
    assert settings is not None
    assert settings.seed == 5
    assert kept.stat().st_mode & 0o077 == 0
    assert list((tmp_path / "tmp").iterdir()) == []


def test_where_there_is_no_room_at_all_it_waits_in_memory(
    found: Reconstruction,
    config: RunConfig,
    disk: Disk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk.full += [tmp_path / "tmp", tmp_path / "home"]
    looked = []

    def look(seconds: float) -> None:
        looked.append(seconds)
        if len(looked) == 3:
            disk.full.clear()

    monkeypatch.setattr("gradinversion.command.rescue.time.sleep", look)
    assert f"is in {tmp_path}/out" in fails(found, config, Console())
    assert len(looked) == 3
    assert "kept in memory until there is some" in capsys.readouterr().out
    assert read_result(Storage(tmp_path / "out")) is not None


def test_what_goes_well_leaves_nothing(found: Reconstruction, config: RunConfig, disk: Disk, tmp_path: Path) -> None:
    with rescue.kept_whatever_comes(found, config, Console()):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"tmp", "home"}


def test_a_report_that_lacks_something_is_refused_as_before(
    found: Reconstruction, config: RunConfig, disk: Disk, tmp_path: Path
) -> None:
    with pytest.raises(ReportError, match="no pool"), rescue.kept_whatever_comes(found, config, Console()):
        raise ReportError("no pool")
    assert not (tmp_path / "out").exists()
